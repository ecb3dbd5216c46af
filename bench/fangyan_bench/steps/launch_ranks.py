"""Starts :mod:`fangyan_bench.steps.ranks` on several ranks by DeepSpeed's own launcher."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from fangyan_bench.harness.machine import BENCH, cores, device
from fangyan_bench.harness.steps import StepSpec


def launch(spec: StepSpec, ranks: int, out: Path) -> dict[str, list[float]]:
    """Return the seconds per token by ZeRO stage, one per round.

    Args:
        spec: the recipe's step.
        ranks: how many, on this machine.
        out: a file for the times.

    Raises:
        RuntimeError: if a rank fails.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")])}
    if device() == "cpu":  # the ranks share its cores
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(max(1, cores() // ranks))}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    command += ["--master_port", str(port), "--module", "fangyan_bench.steps.ranks", spec.recipe]
    done = subprocess.run(
        [*command, *spec.overrides, "--out", str(out)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{ranks} ranks: {done.stderr[-2000:]}")
    times: dict[str, list[float]] = json.loads(out.read_text(encoding="utf-8"))["seconds_per_token"]
    return times
