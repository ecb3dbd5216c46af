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


def cut_tokens(workload: Workload) -> Iterator[Finding]:
    """Find tokens with more sub-words than a sequence has room for: the rest of them is not read."""
    tokenizer = workload.tokenizer
    room = workload.longest - len(tokenizer.prefix) - len(tokenizer.suffix)
    for name, examples in workload.splits.items():
        for example in islice(examples, COMPARED):
            for token in example.fields.get("tokens", ()):
                # A sub-word is a byte at least.
                if (
                    len(token.encode("utf-8", "surrogatepass")) > room
                    and (size := len(tokenizer.subwords(token).ids)) > room
                ):
                    yield Finding(
                        "warning",
                        example.source,
                        f"token {token[:20]!r}… of {name} has {size:,} sub-words, expected at most "
                        f"{room:,}: the rest is not read",
                    )


WORKLOAD_CHECKS: tuple[WorkloadCheck, ...] = (longer_than_a_sequence, cut_tokens)


def workload_findings(workload: Workload) -> list[Finding]:
    """Return what all checks find."""
    return [finding for check in WORKLOAD_CHECKS for finding in check(workload)]
