"""fangyan's steps at every ZeRO stage, on the ranks that DeepSpeed's launcher starts.

    deepspeed --num_gpus N --module fangyan_bench.steps.ranks RECIPE [key=value ...] --out FILE

(``--num_accelerators`` on CPUs), with bench/ on the Python path. Every stage takes its turn in every round.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch.distributed as dist
from typing_extensions import override

from fangyan_bench.harness.timing import Timed, TimingBudget, interleave
from fangyan_bench.trainer_access import RecipeSteps, load_recipe, start_distributed

STAGES = (0, 1, 2, 3)


class _RankTrial(Timed):
    """Steps of all ranks together, with the methods of ``timing.Timed``."""

    def __init__(self, training: RecipeSteps):
        self._training = training

    @override
    def calibrate(self, pass_name: str) -> float:
        self._run()
        return self._run()[0]

    @override
    def sample(self, pass_name: str) -> float:
        seconds, tokens = self._run()
        return seconds / tokens

    def _run(self) -> tuple[float, int]:
        trained: list[int] = []

        def observe(tokens: int, _sentences: int) -> bool:
            trained.append(tokens)
            return False

        dist.barrier()
        start = time.perf_counter()
        self._training.train(self._training.steps, observe)
        dist.barrier()
        return time.perf_counter() - start, sum(trained)


def main() -> None:
    """Time all stages on this rank; rank 0 writes the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    rank, ranks = start_distributed()
    trials = {}
    for stage in STAGES:
        overrides = [*arguments.overrides, f"engine.zero_stage={stage}"]
        trials[str(stage)] = _RankTrial(RecipeSteps(load_recipe(arguments.recipe, overrides)))
    # The same number of rounds on every rank, whatever each of them reads off its clock.
    times = interleave(trials, "step", TimingBudget(arguments.rounds, arguments.rounds, 3600.0))
    if rank == 0:
        arguments.out.write_text(json.dumps({"ranks": ranks, "seconds_per_token": times}), encoding="utf-8")


if __name__ == "__main__":
    main()
