#!/usr/bin/env bash
# Rehearses a run on a GPU machine, with its versions and with nothing that only the trainer needs.
#
#   bash bench/rehearse.sh [FOLDER]           FOLDER keeps the virtual environment, by default .rehearsal
#
# Makes the environment (torch 2.11.0, Triton 3.6.0, transformers 5.17.0, Python 3.12 where there is one), builds
# the extension in a copy of the tree, and runs there what a GPU run begins with: the kernels' tests, offline
# compilation among them and Triton's interpreter, all that they launch compiled for sm_90, the collection of
# bench/, and bench/gpu.py --dry.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-.rehearsal}")
mkdir -p "$folder"

if [ ! -e "$folder/installed" ]; then
    for python in python3.12 "$HOME"/.pyenv/versions/3.12.*/bin/python python3; do
        "$python" -c "" 2>/dev/null && break
    done
    "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' \
        || echo "no Python 3.12 here: rehearsing with $("$python" --version)"
    "$python" -m venv "$folder/venv"
    pip="$folder/venv/bin/python -m pip install --quiet --disable-pip-version-check"
    # A build without CUDA where the index has one; the plain one carries 3 GB of libraries.
    $pip torch==2.11.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu 2>/dev/null || $pip torch==2.11.0
    # Triton 3.6 can interpret nothing with numpy 2.5.
    $pip triton==3.6.0 transformers==5.17.0 peft accelerate numpy==2.4.6 setuptools ninja \
        pytest pytest-benchmark pytest-timeout pytest-xdist hypothesis
    "$folder/venv/bin/python" -m pip uninstall --quiet --yes pydantic pydantic-core  # typer's, and not there
    touch "$folder/installed"
fi
python="$folder/venv/bin/python"
"$python" -c 'import sys, torch, triton, transformers
print("Python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__,
      "transformers", transformers.__version__)'
for package in bitsandbytes expecttest pydantic deepspeed gguf; do
    if "$python" -c "import $package" 2>/dev/null; then
        echo "$package is in $folder/venv: this would rehearse nothing" >&2
        exit 1
    fi
done

# A copy, so that the tree's own extension stays the one of its own torch; stable ABI: either loads in both.
rm -rf "$folder/tree"
mkdir -p "$folder/tree"
tar --exclude=./.git --exclude=./.venv --exclude=./.gpu --exclude=./.rehearsal --exclude=./runs \
    --exclude=__pycache__ --exclude='*.so' -cf - . | tar -xf - -C "$folder/tree"
cd "$folder/tree"
"$python" setup.py -q build_ext --inplace >/dev/null

export PYTHONPATH=$PWD/kernels:$PWD/trainer:$PWD/bench:$PWD/tests/support HF_HUB_OFFLINE=1
"$python" -m pytest tests/kernels -q -p no:cacheprovider
# What the tests launch on a GPU, and every option: compiled for sm_90, which an interpreter does not do.
compiling="-p compiled_here --assert=plain -q -p no:cacheprovider"
"$python" -m pytest $compiling -k triton tests/kernels --ignore tests/kernels/test_interpreter.py
"$python" -m pytest $compiling tests/kernels/every_option.py
collected=$("$python" -m pytest bench --collect-only -q -p no:cacheprovider)
grep -E "linear_cross_entropy-.*-fangyan\]" <<<"$collected" >/dev/null
tail -n 3 <<<"$collected"
"$python" bench/gpu.py "$folder/out" --dry --parts values,ops,steps,tiles
"$python" - "$folder/out" <<'END'
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
read = lambda part: json.loads((folder / f"{part}.json").read_text())["entries"]
assert {e["state"] for e in read("values").values()} == {"passed"}, read("values")
states = {name.split("/")[0]: e["state"] for name, e in read("ops").items()}
assert states == {"linear_cross_entropy": "done", "lora_linear": "done", "lora_linear_nf4": "missing"}, states
assert {e["state"] for e in read("steps").values()} == {"missing"}, read("steps")
tiles = read("tiles")
assert {name.split()[0] for name, e in tiles.items() if e["state"] != "done"} == {"merge"}, tiles
assert not any(e.get("failed") for e in tiles.values()), tiles
END
echo "rehearsed: $folder/out has what a run leaves behind"
