from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from lora_sidecar.files import folder as module
from lora_sidecar.files.folder import CONFIG_BYTES, Absent, NoFolder, is_visible, read_folder, signature, warm
from lora_sidecar.files.peft import Folder, NotAFile, Unseen, Weights
from lora_sidecar.files.safetensors import HEADER_BYTES
from tests.support.adapters import CONFIG, WEIGHTS, write_adapter
from tests.support.disk_errors import failing
from tests.support.drafts import Draft

DISK_ERRORS = [errno.EACCES, errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A sound adapter."""
    return write_adapter(tmp_path / "volume" / "a", layers=1)


def read(path: Path) -> Folder:
    """A folder that is there."""
    found = read_folder(str(path))
    assert isinstance(found, Folder)
    return found


def test_config_and_header_are_read_and_no_weights(adapter: Path) -> None:
    """However large they are."""
    found = read(adapter)
    data = (adapter / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")

    assert found.config == (adapter / CONFIG).read_bytes()
    assert isinstance(found.weights, Weights)
    assert found.weights == Weights(WEIGHTS, len(data), data[: max(end, 4096)])
    assert found.real == str(adapter)


def test_a_folder_whose_name_is_not_there_is_absent(adapter: Path) -> None:
    """The folder above it is, with or without a slash."""
    for path in (f"{adapter}2", f"{adapter}2/"):
        assert isinstance(read_folder(path), Absent)
    shutil.rmtree(adapter.parent)
    assert isinstance(read_folder(str(adapter)), Unseen)


def test_a_file_whose_name_is_not_there_is_absent(adapter: Path) -> None:
    """Config and weights alike."""
    (adapter / WEIGHTS).unlink()
    assert read(adapter).weights is None
    (adapter / CONFIG).unlink()
    assert (read(adapter).config, read(adapter).fingerprint) == (None, "")


@pytest.mark.parametrize("number", DISK_ERRORS)
def test_an_error_of_the_disk_makes_nothing_absent(adapter: Path, number: int) -> None:
    """Neither the folder nor a file in it: it is unseen, and that is said."""
    with failing(adapter, number):
        found = read_folder(str(adapter))
    assert isinstance(found, Unseen)
    assert os.strerror(number) in found.why
    for name, part in ((CONFIG, "config"), (WEIGHTS, "weights")):
        with failing(adapter / name, number):
            seen = getattr(read(adapter), part)
        assert isinstance(seen, Unseen)
        assert seen.why == f"{name} cannot be seen from here: {os.strerror(number)}"


def test_a_link_into_what_only_the_server_mounts_is_unseen(adapter: Path, tmp_path: Path) -> None:
    """The folder itself, one above it, or a file in it: there it may lead somewhere."""
    (tmp_path / "link").symlink_to("/volume-of-the-server/a")
    assert isinstance(read_folder(str(tmp_path / "link")), Unseen)
    assert isinstance(read_folder(str(tmp_path / "link" / "deeper")), Unseen)
    (adapter / WEIGHTS).unlink()
    (adapter / WEIGHTS).symlink_to("/volume-of-the-server/weights")
    assert read(adapter).weights == Unseen(f"{WEIGHTS} is a link that leads nowhere from here")
    assert read(adapter).fingerprint == ""


def test_a_link_in_a_circle_is_unseen(adapter: Path) -> None:
    """Whatever it was meant to be."""
    (adapter / CONFIG).unlink()
    (adapter / CONFIG).symlink_to(CONFIG)
    assert isinstance(read(adapter).config, Unseen)


def test_a_file_in_the_place_of_the_folder(adapter: Path) -> None:
    """Is neither absent nor unseen."""
    assert isinstance(read_folder(str(adapter / CONFIG)), NoFolder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_pipe_in_the_place_of_a_file_holds_up_nobody(adapter: Path, name: str) -> None:
    """It is opened without waiting for somebody who writes to it."""
    (adapter / name).unlink()
    os.mkfifo(adapter / name)
    found = read(adapter)

    assert NotAFile(hangs=True) in (found.config, found.weights)


def test_a_directory_in_the_place_of_weights_is_passed_over(tmp_path: Path) -> None:
    """VLLM looks for the next name, and so is done here."""
    folder = Draft().as_torch("adapter_model.pt").write(tmp_path / "a")
    (folder / WEIGHTS).mkdir()
    found = read(folder).weights
    assert isinstance(found, Weights)
    assert found.name == "adapter_model.pt"
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()
    assert read(folder).config == NotAFile(hangs=False)


def test_what_is_too_long_to_be_read_is_not_read(adapter: Path) -> None:
    """A config beyond every use, and a header of which only the length is looked at."""
    os.truncate(adapter / CONFIG, CONFIG_BYTES + 1)
    length = HEADER_BYTES + 1
    (adapter / WEIGHTS).write_bytes(length.to_bytes(8, "little") + bytes(length))
    found = read(adapter)

    assert isinstance(found.config, Unseen)
    assert isinstance(found.weights, Weights)
    assert len(found.weights.head) == 4096


def test_the_same_bytes_have_the_same_fingerprint(adapter: Path, tmp_path: Path) -> None:
    """Copied anew, touched, or elsewhere: inode and times are none of it."""
    first = read(adapter).fingerprint
    assert first
    os.utime(adapter / WEIGHTS, ns=(1, 1))
    copied = Path(shutil.copytree(adapter, tmp_path / "other"))
    shutil.rmtree(adapter)
    shutil.copytree(copied, adapter)

    assert read(adapter).fingerprint == first
    assert read(copied).fingerprint == first


def test_other_bytes_have_another_fingerprint(adapter: Path, tmp_path: Path) -> None:
    """Config, header, size, and the values of an adapter that was trained anew."""
    seen = {read(adapter).fingerprint}
    seen.add(read(write_adapter(tmp_path / "values", layers=1, seed=1)).fingerprint)
    seen.add(read(write_adapter(tmp_path / "config", layers=1, lora_alpha=17)).fingerprint)
    seen.add(read(write_adapter(tmp_path / "header", layers=1, modules=("self_attn.q_proj",))).fingerprint)
    data = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(data + b"\0")
    seen.add(read(adapter).fingerprint)
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    seen.add(read(adapter).fingerprint)

    assert len(seen) == 6
    assert "" not in seen


def test_a_fingerprint_of_a_file_larger_than_every_disk_is_soon_made(adapter: Path) -> None:
    """It is made of samples."""
    os.truncate(adapter / WEIGHTS, 1 << 40)
    began = time.monotonic()

    assert read(adapter).fingerprint
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("path", ["/a\u00a0b", "/wide\u3000space", "/join\u200der", "/日本/ü", "/a\nb", "/a/./b//c"])
def test_any_character_is_good_in_a_path(path: str) -> None:
    """The server takes it, and so does the operating system."""
    assert is_visible(path)


@pytest.mark.parametrize("path", ["/a\0b", "/\ud800", "org/name", "~/a", ""])
def test_a_path_that_is_none_does_not_reach_the_disk(path: str) -> None:
    """A listing may name any text as a path; nothing fails over it."""
    assert not is_visible(path)
    assert isinstance(read_folder(path), Unseen)
    assert signature(path) is None


def test_metadata_that_cannot_be_had_is_no_sign_of_the_same_bytes(adapter: Path) -> None:
    """Then they are read."""
    before = signature(str(adapter))
    assert before is not None
    with failing(adapter / WEIGHTS, errno.EIO):
        assert signature(str(adapter)) is None
    assert signature(str(adapter)) == before
    write_adapter(adapter, layers=1, seed=1)
    assert signature(str(adapter)) != before


def _bytes_read() -> int:
    """What the kernel has read for this thread, from a disk or from memory."""
    lines = Path("/proc/thread-self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_weights_are_read_to_their_end_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends after its time, and the next one goes on where it ended."""
    monkeypatch.setattr(module, "_CHUNK", 3000)
    (tmp_path / WEIGHTS).write_bytes(bytes(7500))
    begins, read_bytes, begin = [], [], 0
    while begin >= 0:
        begins.append(begin)
        before = _bytes_read()
        begin = warm(str(tmp_path), begin, 0.0)
        read_bytes.append(_bytes_read() - before)

    assert begins == [0, 3000, 6000]
    looking = _bytes_read()
    looking = _bytes_read() - looking
    assert [count - looking for count in read_bytes] == [3000, 3000, 1500]
    before = _bytes_read()
    assert warm(str(tmp_path), 0, 60.0) == -1
    assert _bytes_read() - before - looking == 7500


def test_what_cannot_be_read_is_not_warmed(tmp_path: Path) -> None:
    """No folder, a pipe, or a file that ends sooner than it did."""
    assert warm(str(tmp_path / "nowhere"), 0, 1.0) == -1
    os.mkfifo(tmp_path / WEIGHTS)
    assert warm(str(tmp_path), 0, 1.0) == -1
    (tmp_path / "adapter_model.bin").write_bytes(bytes(100))
    assert warm(str(tmp_path), 200, 1.0) == -1
