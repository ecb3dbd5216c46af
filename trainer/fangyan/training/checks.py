"""Checks of what a model is to read. Each yields findings; add one to :data:`WORKLOAD_CHECKS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from fangyan.data.findings import Finding
from fangyan.tasks.checks import COMPARED, counted

if TYPE_CHECKING:
    from fangyan.training.workload import Workload

WorkloadCheck = Callable[["Workload"], Iterator[Finding]]


def longer_than_a_sequence(workload: Workload) -> Iterator[Finding]:
    """Find examples that become several sequences."""
    if len(workload.sequences) == len(workload.splits["train"]):
        return
    pieces = Counter(sequence.example for sequence in islice(workload.sequences, COMPARED))
    longer = [example for example, count in pieces.items() if count > 1]
    if longer:
        source = workload.splits["train"][longer[0]].source
        yield Finding(
            "warning",
            "data.train",
            f"{len(longer):,} of its {counted(len(workload.splits['train']), len(pieces))} are longer than "
            f"{workload.longest:,} sub-words and become several sequences, such as {source}",
        )


def cut_examples(workload: Workload) -> Iterator[Finding]:
    """Find examples that are not read whole."""
    for name, examples in workload.splits.items():
        yield from workload.task.cut_findings(name, examples, workload.tokenizer, workload.longest)


WORKLOAD_CHECKS: tuple[WorkloadCheck, ...] = (longer_than_a_sequence, cut_examples)


def workload_findings(workload: Workload) -> list[Finding]:
    """Return what all checks find."""
    return [finding for check in WORKLOAD_CHECKS for finding in check(workload)]
