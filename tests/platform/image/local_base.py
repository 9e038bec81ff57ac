"""Makes base images of this machine's Python, so that an image can be built where no registry can be reached.

The trap guarded against is an image that works on a rich base only: these hold an interpreter, its library and the
shared libraries it needs. There is no shell, no user database and no certificate in them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pip

_LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages", "test", "tests",
    "tkinter", "turtledemo", "config-*", "_tkinter*", "_test*", "*.a",
)  # fmt: skip
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_OF_THE_C_LIBRARY = ("libdl.so.2", "libpthread.so.0", "libresolv.so.2", "librt.so.1", "libutil.so.1")
_OF_EVERY_BASE = ("libstdc++.so.6", "libgcc_s.so.1", "libm.so.6")
"""Where there is a package manager, or a C++ program, these are there: google-re2 is linked against them."""
_LIBRARY = re.compile(r"(?:=>\s*)?(/\S+) \(0x[0-9a-f]+\)")


def write_root(folder: Path, *, with_pip: bool) -> Path:
    """Write the root file system of a base image to `folder`, with `python3` in /usr/local/bin; returns the folder."""
    interpreter = Path(os.path.realpath(sys.executable))
    stdlib = folder / "usr/local/lib" / _VERSION
    shutil.copytree(sysconfig.get_path("stdlib"), stdlib, ignore=_LEFT_OUT)
    (stdlib / "site-packages").mkdir()
    if with_pip:
        shutil.copytree(Path(pip.__file__).parent, stdlib / "site-packages/pip")
    binaries = folder / "usr/local/bin"
    binaries.mkdir(parents=True)
    shutil.copy(interpreter, binaries / _VERSION)
    (binaries / "python3").symlink_to(_VERSION)
    libraries = _libraries([interpreter, *(stdlib / "lib-dynload").glob("*.so")])
    # Wheels are linked against parts of the C library that newer ones have taken into libc.so.6.
    beside = next(library for library in libraries if library.name.startswith("libc.so")).parent
    wanted = (*_OF_THE_C_LIBRARY, *_OF_EVERY_BASE)
    libraries |= {beside / name for name in wanted if (beside / name).exists()}
    for library in libraries:
        place = folder / str(_where(library)).lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)
    scratch = folder / "tmp"
    scratch.mkdir()
    scratch.chmod(0o1777)
    return folder


def _libraries(files: list[Path]) -> set[Path]:
    """The shared libraries that these need, as the dynamic linker names them."""
    found: set[Path] = set()
    for file in files:
        told = subprocess.run(["ldd", file], capture_output=True, text=True, check=False).stdout
        found.update(Path(match) for match in _LIBRARY.findall(told))
    return found


def _where(library: Path) -> Path:
    """Where the dynamic linker of the image, which has no cache, finds it."""
    if library.name.startswith("ld-linux"):
        return library
    machine = sysconfig.get_config_var("MULTIARCH") or ""
    return Path("/lib") / machine / library.name
