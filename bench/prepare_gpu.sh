#!/usr/bin/env bash
# Collects in .gpu/ what bench/gpu.py needs on a GPU machine with no network, and builds the extension.
#
#   bash bench/prepare_gpu.sh [PYTHON]        on a machine with a network; PYTHON has torch and pip
#
# What the GPU machine has itself is left out: torch 2.11 or later with its Triton, transformers, accelerate,
# peft, numpy, scikit-learn, pytest, pytest-timeout, pytest-xdist, hypothesis. Everything is for Python 3.12
# on x86-64 Linux. Carry the tree, .gpu/ and kernels/fangyan_kernels/_C.abi3.so; git ignores the latter two.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
[ -x "$python" ] || python=python3
limit=64000000 # bytes of all that has to travel beside the tree

rm -rf .gpu
mkdir -p .gpu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Compiled wheels of the GPU machine's Python; only the CUDA 13 libraries of bitsandbytes are of use.
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work" \
    --python-version 3.12 --implementation cp \
    --platform manylinux_2_17_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_28_x86_64 \
    --platform manylinux2014_x86_64 \
    bitsandbytes==0.50.2 liger-kernel==0.8.5 cut-cross-entropy==25.1.1 expecttest==0.3.0 \
    pydantic==2.14.3 pydantic-core==2.50.4 annotated-types typing-inspection \
    gguf==0.19.0 hjson py-cpuinfo
# These come as source and are Python alone, as DeepSpeed is unless it is told to build something.
DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --wheel-dir "$work" deepspeed==0.19.8 seqeval==1.2.2
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" \
    pycantonese==5.0.0 pydips==0.0.4

for wheel in "$work"/*.whl; do "$python" -m zipfile -e "$wheel" .gpu; done
find .gpu/bitsandbytes -name 'libbitsandbytes_*' ! -name '*_cpu*' ! -name '*_cuda13*' -delete
# Of pycantonese the corpora alone: the package's code is not imported.
find .gpu/pycantonese -mindepth 1 -maxdepth 1 ! -name data ! -name __init__.py -exec rm -r {} +
find .gpu/pycantonese/data -mindepth 1 -maxdepth 1 ! -name hkcancor ! -name common_voice -exec rm -r {} +
: > .gpu/pycantonese/__init__.py
find .gpu -name __pycache__ -prune -exec rm -r {} +
git rev-parse HEAD > .gpu/commit

"$python" setup.py -q build_ext --inplace
strip --strip-debug kernels/fangyan_kernels/_C.abi3.so

bytes=$(du -sb .gpu kernels/fangyan_kernels/_C.abi3.so | awk '{sum += $1} END {print sum}')
echo "$((bytes / 1000000)) MB in .gpu and kernels/fangyan_kernels/_C.abi3.so"
if [ "$bytes" -gt "$limit" ]; then
    echo "that is more than $((limit / 1000000)) MB" >&2
    exit 1
fi
