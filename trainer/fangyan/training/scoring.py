"""A model that is in an engine: its scores, of whole splits and of each data set in them, and its export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fangyan.data.example import Example
from fangyan.data.retained import RETAINED
from fangyan.data.splits import by_data_set
from fangyan.inference.export import export
from fangyan.inference.model_card import model_card
from fangyan.recipe import Recipe
from fangyan.reporting.predictions import BEST_REPORT, keeps_scores
from fangyan.tasks.evaluation import evaluate
from fangyan.tasks.report import Report
from fangyan.tasks.task import Metrics, Task
from fangyan.training.clock import Clock
from fangyan.training.loaded_data import LoadedData
from fangyan.training.run_folder import RunFolder
from fangyan.training.workload import Workload


class ScoredWorkload(Workload):
    """A workload whose model is in an engine.

    Attributes:
        engine: of DeepSpeed, around the model.
        folder: the run folder, where reports are written.
        clock: of this process's part of the run.
        best_outputs: the task's outputs of the best checkpoint, by split, on rank 0: for the run's report.
    """

    engine: Any
    folder: RunFolder

    @cached_property
    def best_outputs(self) -> dict[str, list[Any]]:
        return {}

    # The split that was reported last, on rank 0.
    _latest: tuple[str, Report] | None = None

    def __init__(self, recipe: Recipe, data: LoadedData | None = None):
        self.clock = Clock()
        super().__init__(recipe, data)

    def evaluate(self, *names: str, report_as: str | None = None) -> dict[str, Metrics]:
        """Return the metrics of the named splits that the data has. Collective.

        Args:
            names: of the splits.
            report_as: write the scores of each class as ``reports/<split>-<report_as>.json``.
        """
        self.engine.eval()
        found = {}
        for name in names:
            if examples := self.splits.get(name):
                on_report = on_outputs = None
                task = self.task
                is_for_report = report_as == BEST_REPORT and self.recipe.train.report
                if is_for_report and keeps_scores(task, examples):
                    task = task.with_scores()
                if report_as is not None and dist.get_rank() == 0:
                    on_report = partial(self._write_report, name, report_as)
                if is_for_report and dist.get_rank() == 0:
                    on_outputs = partial(self.best_outputs.__setitem__, name)
                found[name] = self._evaluate(examples, on_report, on_outputs, task)
        self.engine.train()
        return found

    def _evaluate(
        self,
        examples: Sequence[Example],
        on_report: Callable[[Report], None] | None = None,
        on_outputs: Callable[[list[Any]], None] | None = None,
        task: Task | None = None,
    ) -> Metrics:
        with self.clock.of("evaluation"):
            return evaluate(
                *(task or self.task, self.model, examples, self.tokenizer, self.max_length),
                *(self.engine, self.cache, on_report, on_outputs),
            )

    def evaluate_data_sets(self) -> dict[str, Metrics]:
        """Return the metrics of each data set in dev and test, where there are several, and of retained ones.

        Collective.
        """
        self.engine.eval()
        found = {}
        for split in ("dev", "test"):
            for name, examples in by_data_set(self.splits.get(split, ())).items():
                found[f"{split}/{name}"] = self._evaluate(examples)
        for name, examples in self.retained.items():
            found[RETAINED + name] = self._evaluate(examples)
        self.engine.train()
        return found

    def _write_report(self, split: str, name: str, report: Report) -> None:
        report.write(self.folder.path / "reports" / f"{split}-{name}.json")
        self._latest = split, report

    def export(self, folder: Path, before: dict[str, Metrics], after: dict[str, Metrics]) -> None:
        """Write plain transformers files, or an adapter as PEFT has them. Collective."""
        recipe, model = self.recipe, self.model
        card = model_card(
            name=recipe.name,
            model=model.base,
            model_config=recipe.model,
            data=recipe.data,
            task=self.task,
            is_adapter=self.base is not None,
            floor=self.floor,
            before=before,
            after=after,
            recipe_yaml=recipe.to_yaml(),
        )
        export(folder, model.model, self.tokenizer.backend, self.inference_config, card, self.base)
