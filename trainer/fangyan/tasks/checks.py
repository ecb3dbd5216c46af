"""Checks of a data set, whatever its task. Each yields findings; add one to :data:`DATA_CHECKS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from fangyan.data.example import Splits
from fangyan.data.findings import Finding
from fangyan.tasks.task import Task

# Examples of a split that are compared with each other, in 40 MB.
COMPARED = 200_000

DataCheck = Callable[[Splits, Task], Iterator[Finding]]


def counted(total: int, compared: int) -> str:
    """Return how many examples a check has looked at, such as ``first 200,000 examples``."""
    return f"{total:,} examples" if total <= compared else f"first {compared:,} examples"


def copies(splits: Splits, task: Task) -> Iterator[Finding]:
    """Find examples that occur twice, in one split or in two."""
    first: dict[int, tuple[str, str]] = {}
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, examples in splits.items():
        for example in islice(examples, COMPARED):
            key = hash(task.inputs(example))
            split, source = first.setdefault(key, (name, ""))
            if source:
                found.setdefault((name, split), []).append((example.source, source))
            else:
                first[key] = name, example.source
    for (name, split), pairs in found.items():
        copy, original = pairs[0]
        count = f"{len(pairs):,} of its {counted(len(splits[name]), COMPARED)}"
        if name == split:
            message = f"{count} repeat another of them, such as {copy} (as {original})"
        else:
            message = (
                f"{count} are in {split} too, such as {copy} (as {original}): its metrics are better than "
                "those of new text"
            )
        yield Finding("warning", f"data.{name}", message)


def of_the_task(splits: Splits, task: Task) -> Iterator[Finding]:
    """Find what concerns the task's own labels."""
    yield from task.findings(splits)


DATA_CHECKS: tuple[DataCheck, ...] = (of_the_task, copies)


def data_findings(splits: Splits, task: Task) -> list[Finding]:
    """Return what all checks find."""
    return [finding for check in DATA_CHECKS for finding in check(splits, task)]
