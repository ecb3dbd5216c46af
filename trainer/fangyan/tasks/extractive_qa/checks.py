"""Checks of questions and answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from fangyan.data.example import Example, Splits
from fangyan.data.findings import Finding
from fangyan.tasks.checks import COMPARED, counted
from fangyan.tasks.extractive_qa.windows import Encoder

WITH, WITHOUT = "with an answer", "without"


def count_answers(splits: Splits) -> dict[str, Counter[str]]:
    """Return how many questions of each split have an answer, and how many have none."""
    return {
        name: Counter(WITH if example.fields["answers"] else WITHOUT for example in examples)
        for name, examples in splits.items()
    }


def answer_findings(counts: Mapping[str, Counter[str]]) -> Iterator[Finding]:
    """Yield what keeps a model from learning which questions have no answer."""
    for name, found in counts.items():
        if found[WITHOUT] and not counts["train"][WITHOUT]:
            yield Finding(
                "warning",
                f"data.{name}",
                f"{found[WITHOUT]:,} questions have no answer, but all of train have one: the model will "
                "answer every question",
            )


def cut_answers(name: str, examples: Sequence[Example], encode: Encoder) -> Iterator[Finding]:
    """Yield findings on answers that cannot be learned, and on questions that are not read whole.

    Args:
        name: of the split.
        examples: of it.
        encode: for the model.
    """
    lost: list[Example] = []
    cut: list[Example] = []
    for example in islice(examples, COMPARED):
        encoded = encode(example.fields["question"], example.fields["context"])
        answers = example.fields["answers"]
        if answers and all(encoded.locate(example.fields["context"], answer) is None for answer in answers):
            lost.append(example)
        if encoded.cut:
            cut.append(example)
    total = counted(len(examples), COMPARED)
    if lost:
        yield Finding(
            "warning",
            f"data.{name}",
            f"{len(lost):,} of its {total} have an answer that no sub-words of a sequence stand for, and are "
            f"not learned, such as {lost[0].source} ({lost[0].fields['answers'][0]['text'][:40]!r})",
        )
    if cut:
        yield Finding(
            "warning",
            f"data.{name}",
            f"{len(cut):,} of its {total} have a question of more than three quarters of a sequence, and its "
            f"end is not read, such as of {cut[0].source}",
        )
