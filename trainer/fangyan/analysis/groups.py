"""Scores of groups of examples: by length, data set, conversation, or any column of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from fangyan.analysis.bootstrap import Interval, Units, intervals
from fangyan.analysis.run_model import Scored
from fangyan.data.example import DATASET, Example
from fangyan.data.masking import words_of
from fangyan.data.splits import DataConfig, find_files
from fangyan.errors import UserError
from fangyan.suggestions import did_you_mean
from fangyan.tasks.task import Task

# Upper ends of lengths, in tokens or words.
_LENGTHS = (5, 10, 20, 40)
# Groups that splits keep together are a column of their own if they are so few, and so large on average.
_MOST_GROUPS, _GROUP_SIZE = 50, 5
# Groups of a column in the table, the largest.
_SHOWN = 20
_NONE = "(none)"


@dataclass(frozen=True)
class Group:
    """The scores of the examples that have one value in a column.

    Attributes:
        value: of the column.
        examples: how many.
        metrics: of these examples alone.
        intervals: of the metrics; none of too few examples.
    """

    value: str
    examples: int
    metrics: dict[str, float]
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class GroupReport:
    """Scores by some columns.

    Attributes:
        metric: the task's primary one.
        units: what was resampled for the intervals, in words.
        columns: the groups of each; lengths in order, others the largest first.
    """

    metric: str
    units: str
    columns: dict[str, list[Group]]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as what JSON holds."""
        return asdict(self)

    @property
    def notes(self) -> list[str]:
        """Return what was resampled, and which columns say nothing."""
        return [self.units] + [
            f"all examples have one {column}, {groups[0].value}: there is nothing to compare by it"
            for column, groups in self.columns.items()
            if len(groups) == 1
        ]

    def tables(self) -> list[Table]:
        """Return the scores of each column that divides the examples."""
        return [self._table(column, groups) for column, groups in self.columns.items() if len(groups) > 1]

    def _table(self, column: str, groups: Sequence[Group]) -> Table:
        more = f", the largest {_SHOWN} of {len(groups):,}" if len(groups) > _SHOWN else ""
        found = Table(title=escape(f"By {column}{more}"))
        found.add_column(escape(column), overflow="fold")
        for head in ("examples", self.metric.replace("_", " "), "95% interval"):
            found.add_column(head, justify="right", no_wrap=head == "95% interval")
        for group in groups[:_SHOWN]:
            bounds = "–"
            if self.metric in group.intervals:
                bounds = "{:.2f} to {:.2f}".format(*group.intervals[self.metric])
            score = f"{group.metrics[self.metric]:.2f}"
            found.add_row(escape(group.value), f"{group.examples:,}", score, bounds)
        return found


def group_report(
    scored: Scored, columns: Mapping[str, Sequence[str]], units: Units, resamples: int, seed: int
) -> GroupReport:
    """Return the scores of groups of examples.

    Args:
        scored: the examples.
        columns: by name, the value of each example.
        units: what is resampled for intervals.
        resamples: how many.
        seed: of the resamples.
    """
    found = {}
    for column, values in columns.items():
        places: dict[str, list[int]] = {}
        for i, value in enumerate(values):
            places.setdefault(value, []).append(i)
        groups = [
            _group(scored, value, np.array(indices), units, resamples, seed)
            for value, indices in places.items()
        ]
        order = {name: i for i, name in enumerate(_length_names())}
        if places.keys() <= order.keys():  # a file may have a column of that name
            found[column] = sorted(groups, key=lambda group: order[group.value])
        else:
            found[column] = sorted(groups, key=lambda group: (-group.examples, group.value))
    return GroupReport(scored.run.task.primary_metric, units.sentence, found)


def _group(
    scored: Scored, value: str, indices: np.ndarray[Any, Any], units: Units, resamples: int, seed: int
) -> Group:
    resampler, own = scored.resampler.subset(indices), units.subset(indices)
    metrics = resampler.metrics()
    is_finite = all(map(np.isfinite, metrics.values()))
    found = intervals(resampler, own, resamples, seed) if is_finite else {}
    return Group(value, len(indices), metrics, found)


def known_columns(task: Task, examples: Sequence[Example]) -> dict[str, list[str]]:
    """Return what is known of examples of any format: length, data set, the group that splits keep whole."""
    columns = {"length": [_length(task, example) for example in examples]}
    if len(examples) and DATASET in examples[0].fields:
        columns["data set"] = [example.fields[DATASET] for example in examples]
    groups = [example.group for example in examples]
    if 1 < len(set(groups)) <= min(_MOST_GROUPS, len(groups) // _GROUP_SIZE):
        columns["group"] = groups
    return columns


def _length(task: Task, example: Example) -> str:
    inputs = task.inputs(example)
    length = len(words_of(inputs)) if isinstance(inputs, str) else len(inputs)
    return next(
        (name for name, end in zip(_length_names(), _LENGTHS, strict=False) if length <= end),
        _length_names()[-1],
    )


def _length_names() -> list[str]:
    starts = [1, *(end + 1 for end in _LENGTHS)]
    return [f"{start} to {end}" for start, end in zip(starts, _LENGTHS, strict=False)] + [
        f"{starts[-1]} or more"
    ]


def file_columns(
    examples: Sequence[Example], data: DataConfig, files: Sequence[str], names: Sequence[str]
) -> dict[str, list[str]]:
    """Return columns that files have beside what is learned.

    Args:
        examples: of the files.
        data: how they are read.
        files: of the data; names may be patterns.
        names: of the columns.

    Raises:
        UserError: for a format without such, or a column that no example has.
    """
    said: dict[str, dict[str, str]] = {}
    for path in dict.fromkeys(path for name in files for path in find_files(name)):
        there = dict(data.metadata(path))
        if same := said.keys() & there.keys():  # of formats whose sources are without folders
            raise UserError(
                f"--group-by: {min(same)} is in two files of --data, expected files whose names differ"
            )
        said |= there
    known = dict.fromkeys(key for values in said.values() for key in values)
    for name in names:
        if name not in known:
            found = ", ".join(known) or "none"
            hint = did_you_mean(name, known)
            raise UserError(f"--group-by {name}: no example has it, expected one of {found[:200]}{hint}")
    return {name: [said.get(example.source, {}).get(name, _NONE) for example in examples] for name in names}
