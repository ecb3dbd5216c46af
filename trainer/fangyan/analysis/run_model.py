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
from fangyan.progress import track
from fangyan.tasks.evaluation import run_batches
from fangyan.tasks.task import Task


@dataclass(frozen=True)
class RunModel:
    """A run's exported model, ready to run.

    Attributes:
        folder: of the run.
        task: what it learned.
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
        return cls(Path(run), exported.task, model, tokenizer, exported.max_length, exported.prefixes)

    def outputs(self, examples: Sequence[Example], keep_scores: bool = False) -> list[Any]:
        """Return the task's outputs of examples; of a task whose outputs are of batches, one for each.

        Args:
            examples: to run.
            keep_scores: whether :meth:`Task.class_scores` will be asked for, which takes memory.
        """
        task = self.task.with_scores() if keep_scores else self.task
        if not task.outputs_are_of_batches:
            sequences = task.tokenize_all(examples, self.tokenizer, self.max_length, scored=True)
            return run_batches(task, self.model, sequences, self.tokenizer.pad_id)
        found: list[Any] = []
        for example in track(examples, "evaluating"):
            alone = task.tokenize_scored([example], self.tokenizer, self.max_length)
            parts = run_batches(task, self.model, alone, self.tokenizer.pad_id)
            found.append(tuple(map(sum, zip(*parts, strict=True))) if parts else (0.0, 0))
        return found


class Scored:
    """Examples and what a model says of them.

    Args:
        run: the model.
        examples: in order.
        keep_scores: see :meth:`RunModel.outputs`.
    """

    def __init__(self, run: RunModel, examples: Sequence[Example], keep_scores: bool = False):
        self.run, self.examples = run, examples
        self.outputs = run.outputs(examples, keep_scores)
        self.resampler = run.task.resampler(examples, self.outputs)

    @cached_property
    def predicted(self) -> list[tuple[Any, ...]] | None:
        """Return what is predicted of each example; see :meth:`Task.predicted`."""
        return self.run.task.predicted(self.examples, self.outputs)
