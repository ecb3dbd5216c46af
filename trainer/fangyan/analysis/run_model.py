"""The model of a run, scored on examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fangyan.data.example import Example
from fangyan.data.tokenization import Tokenizer
from fangyan.inference.load import load_exported, model_folder
from fangyan.models.packed import PackedModel
from fangyan.tasks.evaluation import run_batches
from fangyan.tasks.task import Task


@dataclass(frozen=True)
class RunModel:
    """A run's exported model, ready to run.

    Attributes:
        folder: of the run.
        task: what it learned; its outputs have scores.
        model: on this machine's device.
        tokenizer: of the model.
        max_length: most sub-words of a sequence.
        prefixes: names of data sets, one of which stands before each text.
    """

    folder: Path
    task: Task
    model: PackedModel
    tokenizer: Tokenizer
    max_length: int
    prefixes: Sequence[str] = ()

    @classmethod
    def load(cls, run: str | Path) -> RunModel:
        """Load the model of a run folder.

        Raises:
            UserError: if there is no exported model, or it cannot be loaded.
        """
        exported = load_exported(model_folder(Path(run)))
        model, tokenizer = exported.packed(), Tokenizer(exported.backend)
        exported.task.use_model(model.base, exported.backend)
        task = exported.task.with_scores()
        return cls(Path(run), task, model, tokenizer, exported.max_length, exported.prefixes)

    def outputs(self, examples: Sequence[Example]) -> list[Any]:
        """Return the task's outputs of examples; of a task whose outputs are of batches, one for each."""
        if not self.task.outputs_are_of_batches:
            return self._run(examples)
        found = []
        for example in examples:
            parts = self._run([example])
            found.append(tuple(map(sum, zip(*parts, strict=True))) if parts else (0.0, 0))
        return found

    def _run(self, examples: Sequence[Example]) -> list[Any]:
        sequences = self.task.tokenize_scored(examples, self.tokenizer, self.max_length)
        return run_batches(self.task, self.model, sequences, self.tokenizer.pad_id)


class Scored:
    """Examples and what a model says of them.

    Args:
        run: the model.
        examples: in order.
    """

    def __init__(self, run: RunModel, examples: Sequence[Example]):
        self.run, self.examples = run, examples
        self.outputs = run.outputs(examples)
        self.resampler = run.task.resampler(examples, self.outputs)

    @cached_property
    def predicted(self) -> list[tuple[Any, ...]] | None:
        """Return what is predicted of each example; see :meth:`Task.predicted`."""
        return self.run.task.predicted(self.examples, self.outputs)
