"""The report of a run that is trained: what only the run knows, and the page at its end.

It may fail, and says so; the run does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from fangyan.data.example import Example
from fangyan.device import device
from fangyan.environment import describe
from fangyan.errors import shorten
from fangyan.reporting import predictions, write_report
from fangyan.reporting.facts import Facts
from fangyan.tasks.checks import COMPARED

if TYPE_CHECKING:
    from fangyan.training.trainer import Trainer


def begin(trainer: Trainer) -> None:
    """Write what the run knows of its data and its machine."""
    _try(trainer, lambda: facts_of(trainer).write(trainer.folder.path))


def end(trainer: Trainer, tokens_per_second: float, peak_memory: float) -> None:
    """Write the report, once all else is whole.

    Args:
        trainer: whose model is exported.
        tokens_per_second: of the steps.
        peak_memory: in bytes, of the rank that took most.
    """
    _try(trainer, lambda: _write(trainer, tokens_per_second, peak_memory))


def _try(trainer: Trainer, write: Callable[[], None]) -> None:
    """Do on rank 0 what a run can do without, if the recipe asks for it."""
    if dist.get_rank() != 0 or not trainer.recipe.train.report:
        return
    try:
        write()
    except Exception as error:
        said = shorten(" ".join(str(error).split()))
        trainer.logger.warning(f"no report, the run goes on: {said or type(error).__name__}")


def _write(trainer: Trainer, tokens_per_second: float, peak_memory: float) -> None:
    folder = trainer.folder.path
    for split, outputs in trainer.best_outputs.items():
        predictions.keep(folder, split, trainer.task, trainer.splits[split], outputs)
    trainer.best_outputs.clear()
    facts = Facts.read(folder) or facts_of(trainer)
    known_now = replace(
        facts,
        floor=trainer.floor,
        finished=_now(),
        tokens_per_second=tokens_per_second,
        peak_memory_gb=peak_memory / 1e9,
    )
    known_now.write(folder)
    trainer.logger.result(f"report: {write_report(folder)}")


def facts_of(trainer: Trainer) -> Facts:
    """Return what the run knows before its first step."""
    task = trainer.task
    splits: dict[str, Sequence[Example]] = {
        name: examples if len(examples) <= COMPARED else [examples[i] for i in range(COMPARED)]
        for name, examples in trainer.splits.items()
    }
    sizes = {
        name: {
            "examples": len(trainer.splits[name]),
            "units": sum(len(task.inputs(example)) for example in examples),
        }
        for name, examples in splits.items()
    }
    sizes["train"]["sub-words"] = int(trainer.lengths.sum())
    return Facts(
        started=_now(),
        command=_command(),
        ranks=dist.get_world_size(),
        device=device().type,
        environment=describe(),
        findings=[asdict(finding) for finding in trainer.findings],
        splits=sizes,
        unit="characters" if isinstance(task.inputs(splits["train"][0]), str) else "tokens",
        labels={name: dict(counts) for name, counts in task.label_counts(splits).items()},
        counted=COMPARED,
        model=type(trainer.model.base).__name__,
        metric=trainer.metric,
        greater_is_better=task.greater_is_better,
        metric_unit=task.metric_unit,
    )


def _now() -> str:
    return datetime.now().astimezone().isoformat(" ", "seconds")


def _command() -> list[str]:
    """Return what was typed, where it was ``fangyan``; [] of a program in Python."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return ["fangyan", *sys.argv[1:]] if name == "fangyan" else []
