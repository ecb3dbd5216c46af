"""Instructions that the C++ kernels execute, counted by Callgrind: the same on every x86-64 machine.

Valgrind presents an AVX2 processor whatever the machine has, and one thread runs, so that a count
changes only with the kernel and its compiler.

    python -m fangyan_bench.instructions OP …      (what count_instructions starts)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fangyan_bench.harness.machine import BENCH
from fangyan_bench.registry import find_op, ops

EXTENSION = "fangyan_kernels/_C"


def missing() -> str | None:
    """Return why instructions cannot be counted here, or None."""
    return None if shutil.which("valgrind") else "valgrind is not installed"


def compiler() -> str:
    """Return the compiler that builds the extension here: counts of another are not comparable."""
    return subprocess.run(["c++", "--version"], capture_output=True, text=True).stdout.splitlines()[0]


def count_instructions() -> dict[str, int]:
    """Count the extension's instructions in a forward and a backward, by op, shape and implementation."""
    counted = [op.name for op in ops().values() if op.counted]
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder, "callgrind")
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={dump}"]
        done = subprocess.run(
            [*command, sys.executable, "-m", "fangyan_bench.instructions", *counted],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCH)},
            capture_output=True,
            text=True,
        )
        names = re.findall(r"^counted (.+)$", done.stdout, re.MULTILINE)
        if done.returncode or not names:
            raise RuntimeError(f"callgrind: {done.stderr[-2000:]}")
        # Each dump holds what ran since the one before it.
        return {name: inside(Path(f"{dump}.{i}")) for i, name in enumerate(names, start=1)}


def inside(dump: Path, extension: str = EXTENSION) -> int:
    """Count the instructions of a Callgrind file that ran in the extension's own code."""
    names: dict[str, str] = {}
    here, skip, total = False, False, 0
    for line in dump.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"ob=\((\d+)\)(?: (.+))?", line):
            names.setdefault(found[1], found[2] or "")
            here = extension in names[found[1]]
        elif found := re.match(r"cob=\((\d+)\) (.+)", line):
            names.setdefault(found[1], found[2])
        elif line.startswith("calls="):
            skip = True  # the next line is the callee's cost, counted where the callee is
        elif found := re.match(r"(?:\d+|[+-]\d+|\*) (\d+)$", line):
            if here and not skip:
                total += int(found[1])
            skip = False
    return total


def _main() -> None:
    import torch

    from fangyan_bench.harness.memory import run_once
    from fangyan_bench.harness.op import make_inputs

    torch.set_num_threads(1)
    # An op alone: whatever else is imported takes its time under Valgrind.
    for op in map(find_op, sys.argv[1:]):
        for name, shape in op.counted:
            implementation, inputs = op.implementation(name), make_inputs(op, shape, 0)
            run_once(op, shape, implementation, inputs)  # loads, and fills the allocator's caches
            _control("--instr=on")
            run_once(op, shape, implementation, inputs)
            _control("--instr=off")
            _control("--dump")
            print(f"counted {op.name}/{shape}/{name}", flush=True)
    os._exit(0)  # an interpreter's end takes long under Valgrind


def _control(action: str) -> None:
    subprocess.run(["callgrind_control", action, str(os.getpid())], check=True, capture_output=True)


if __name__ == "__main__":
    _main()
