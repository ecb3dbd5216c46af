"""All that can be asked of a run's model, in one go: tables, JSON and pictures in ``RUN/probe``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from fangyan.analysis import pictures
from fangyan.analysis.bootstrap import Units
from fangyan.analysis.calibration import Calibration, calibrate
from fangyan.analysis.groups import GroupReport, file_columns, group_report, known_columns
from fangyan.analysis.options import Options, Part
from fangyan.analysis.perturbations import Perturbation, perturbations
from fangyan.analysis.robustness import RobustnessReport, robustness
from fangyan.analysis.run_model import RunModel, Scored
from fangyan.analysis.saliency import Saliency, saliency
from fangyan.analysis.terms import TermReport, Terms, term_report
from fangyan.data.example import Example
from fangyan.data.splits import read_examples
from fangyan.errors import UserError
from fangyan.files import REPEAT, whole_file
from fangyan.inference.load import check_source, model_folder
from fangyan.inference.run_data import data_config, examples_of, scored_split, source_names
from fangyan.inference.temperature import store_temperature
from fangyan.tasks.task import TokenUnit


class Report(Protocol):
    """What a part has found."""

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON holds."""

    def tables(self) -> list[Table]:
        """Return it for a terminal."""

    @property
    def notes(self) -> list[str]:
        """Return what to know beside."""


@dataclass(frozen=True)
class Probe:
    """A run's model and what is asked of it; parts share what they need.

    Attributes:
        run: the model.
        options: what is asked.
        say: called with what a user should know beside the reports.
    """

    run: RunModel
    options: Options
    say: Callable[[str], None] = field(default=print)

    @cached_property
    def examples(self) -> Sequence[Example]:
        """Return what the model is scored on."""
        options = self.options
        return examples_of(self.run.folder, options.data, options.source, "probe")

    @cached_property
    def scored(self) -> Scored:
        """Return the examples with the model's outputs."""
        for note in self.run.task.notes(self.examples):
            self.say(note)
        return Scored(self.run, self.examples, keep_scores=True)

    @cached_property
    def units(self) -> Units:
        """Return what is resampled."""
        return Units.of(self.examples, self.options.by)

    @cached_property
    def unit(self) -> TokenUnit:
        """Return what tokens are."""
        return data_config(self.run.folder, "probe").token_unit

    @cached_property
    def perturbations(self) -> list[Perturbation]:
        """Return the ways in which texts are typed otherwise."""
        return perturbations(self.options.rate, self.options.mappings)

    @cached_property
    def terms(self) -> Terms | None:
        """Return the pairs of terms, if there are such."""
        if self.options.terms is None:
            return None
        has_tokens = "tokens" in self.examples[0].fields
        return Terms.read(self.options.terms, self.unit if has_tokens else None)

    @cached_property
    def columns(self) -> dict[str, list[str]]:
        """Return the values that examples are grouped by."""
        options = self.options
        columns = known_columns(self.run.task, self.examples)
        if options.group_by:
            config = data_config(self.run.folder, "probe").of_source(options.source)
            columns |= file_columns(self.examples, config, options.data, options.group_by)
        return columns

    def read(self) -> None:
        """Read all files, before the model runs for minutes: what is wrong in them is said at once."""
        _ = self.units, self.perturbations, self.terms, self.columns

    def report(self, part: Part) -> Report | None:
        """Return what a part finds; None, with a sentence, where it is not for this model.

        Raises:
            UserError: for a file or an option that does not fit.
        """
        parts: dict[str, Callable[[], Report | None]] = {
            "robustness": self._robustness,
            "groups": self._groups,
            "calibration": self._calibration,
            "terms": self._terms,
        }
        return parts[part]()

    def _predicts(self, part: Part) -> bool:
        """Return whether the model predicts what the part compares; say it otherwise."""
        if self.scored.predicted is None:
            self.say(
                f"{part}: is for models that predict tags, labels or answers, found the task "
                f"{self.run.task.name}, which is scored by its loss; left out"
            )
        return self.scored.predicted is not None

    def _robustness(self) -> RobustnessReport | None:
        if not self._predicts("robustness"):
            return None
        options = self.options
        return robustness(
            *(self.scored, self.perturbations, options.rate, self.units, self.unit),
            *(options.resamples, options.seed),
        )

    def _groups(self) -> GroupReport:
        options = self.options
        return group_report(self.scored, self.columns, self.units, options.resamples, options.seed)

    def _calibration(self) -> Calibration | None:
        options, folder = self.options, self.run.folder
        if self.run.task.class_scores(self.scored.examples, self.scored.outputs) is None:
            self.say("calibration: is for models with one class for each token or text; left out")
            return None
        split = scored_split(folder)
        on = ", ".join(options.data) if options.data else f"the {split} split"
        dev = self.scored
        if options.data or options.source or split != "dev":  # all of dev, whatever is scored
            dev = Scored(self.run, read_examples(folder / "splits" / "dev.jsonl"), keep_scores=True)
        found = calibrate(dev, self.scored, on)
        if options.store_temperature:
            if found.is_bound:
                raise UserError(
                    f"--store-temperature: dev fits none, {found.temperature:.3g} is a bound; expected a dev "
                    "split with more examples, of which the model gets some right and some wrong"
                )
            store_temperature(model_folder(folder), found.temperature)
        return found

    def _terms(self) -> TermReport | None:
        assert self.terms is not None
        if not self._predicts("terms"):
            return None
        options = self.options
        return term_report(
            *(self.run, self.examples, self.terms, self.units, self.unit, options.resamples, options.seed)
        )

    def saliency(self) -> list[Saliency]:
        """Return what the labels of each text come from.

        Raises:
            UserError: for a model without labels, or a text that it cannot read.
        """
        run, source = self.run, self.options.source
        if "label2id" not in run.task.model_kwargs():
            raise UserError(
                f"--saliency: is for models that label tokens or texts, found the task {run.task.name}"
            )
        check_source(source, run.prefixes, source_names(run.folder))
        predictor = run.task.predictor(run.model, run.tokenizer, run.max_length)
        predictor.prefix = source if source in run.prefixes else None
        examples = [predictor.told(predictor.example(text)) for text in self.options.texts]
        return [saliency(run, *pair) for pair in zip(self.options.texts, examples, strict=True)]


def probe(
    run: str | Path, options: Options | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Probe a run's model; write ``RUN/probe/PART.json`` of each part, and a picture beside it.

    Args:
        run: a run folder.
        options: what is asked of it.
        say: called with what a user should know beside the reports.

    Returns:
        The report of each part, of saliency one for each text, by the part's name.

    Raises:
        UserError: for what does not fit the run.
    """
    options = options or Options()
    parts = options.chosen()
    folder = Path(run)
    model_folder(folder)  # what is none is said at once
    data_config(folder, "probe")
    asked = Probe(RunModel.load(folder), options, say)
    if parts != ["saliency"]:
        asked.read()
    found: dict[str, Any] = {}
    for part in parts:
        report = asked.saliency() if part == "saliency" else asked.report(part)
        if report is not None:
            found[part] = report
            _write(folder / "probe", part, report)
    return found


def _write(folder: Path, part: Part, report: Any) -> None:
    """Write a report and its pictures."""
    reports = (
        {part: report}
        if not isinstance(report, list)
        else {f"{part}-{i}": each for i, each in enumerate(report)}
    )
    with whole_file(folder / f"{part}.json", REPEAT) as partial:
        partial.write_text(json.dumps(as_json(report), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for old in folder.glob(f"{part}*.svg"):
        old.unlink()
    for name, each in reports.items():
        if each.tables():
            pictures.draw(each, folder / f"{name}.svg")


def as_json(report: Any) -> Any:
    """Return a report as what JSON holds: null for a number that is not finite."""
    if isinstance(report, list):
        return [as_json(each) for each in report]
    return _finite(report.as_json())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
