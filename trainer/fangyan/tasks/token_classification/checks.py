"""Checks of the tags of a data set. Each yields findings; add one to :data:`TAG_CHECKS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from fangyan.data.example import Example, Splits
from fangyan.data.findings import Finding
from fangyan.data.tokenization import Tokenizer
from fangyan.tasks.checks import COMPARED
from fangyan.tasks.label_checks import imbalanced, rare


@dataclass(frozen=True)
class TaggedData:
    """What is checked.

    Attributes:
        splits: examples, by name.
        counts: per split how often each tag occurs.
    """

    splits: Splits
    counts: Mapping[str, Counter[str]]


TagCheck = Callable[[TaggedData], Iterator[Finding]]


def count_tags(splits: Splits) -> dict[str, Counter[str]]:
    """Return how often each tag occurs in each split."""
    return {
        name: Counter(tag for example in examples for tag in example.fields["tags"])
        for name, examples in splits.items()
    }


def tag_findings(splits: Splits) -> Iterator[Finding]:
    """Yield what all checks find."""
    data = TaggedData(splits, count_tags(splits))
    for check in TAG_CHECKS:
        yield from check(data)


def rare_tags(data: TaggedData) -> Iterator[Finding]:
    """Find tags with few examples."""
    yield from rare(data.counts["train"], "tags")


def imbalanced_tags(data: TaggedData) -> Iterator[Finding]:
    """Find a tag set of which some are far more frequent than others."""
    yield from imbalanced(data.counts["train"], "tags")


def contradictions(data: TaggedData) -> Iterator[Finding]:
    """Find sentences that occur with different tags."""
    first: dict[int, tuple[str, int]] = {}
    found = []
    for name, examples in data.splits.items():
        for i, example in enumerate(islice(examples, COMPARED)):
            split, index = first.setdefault(hash(example.fields["tokens"]), (name, i))
            other = example if (split, index) == (name, i) else data.splits[split][index]
            same = other.fields["tokens"] == example.fields["tokens"]
            if same and other.fields["tags"] != example.fields["tags"]:
                found.append((other, example))
    if found:
        message = f"{_difference(*found[0])}; sentences like this: {len(found):,}"
        if any(len(examples) > COMPARED for examples in data.splits.values()):
            message += f" among the first {COMPARED:,}"
        yield Finding("warning", found[0][1].source, message)


def _difference(left: Example, right: Example) -> str:
    """Return where two examples of the same tokens have different tags."""
    tags = zip(left.fields["tags"], right.fields["tags"], strict=True)
    i, (one, other) = next((i, pair) for i, pair in enumerate(tags) if pair[0] != pair[1])
    token = right.fields["tokens"][i]
    return f"token {i + 1} {token!r} is {other}, but {one} in the same sentence in {left.source}"


TAG_CHECKS: tuple[TagCheck, ...] = (rare_tags, imbalanced_tags, contradictions)


def cut_tokens(
    name: str, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
) -> Iterator[Finding]:
    """Find tokens with more sub-words than a sequence has room for: the rest of them is not read."""
    room = max_length - len(tokenizer.prefix) - len(tokenizer.suffix)
    for example in islice(examples, COMPARED):
        for token in example.fields["tokens"]:
            # A sub-word is a byte at least.
            if (
                len(token.encode("utf-8", "surrogatepass")) > room
                and (size := len(tokenizer.subwords(token).ids)) > room
            ):
                yield Finding(
                    "warning",
                    example.source,
                    f"token {token[:20]!r}… of {name} has {size:,} sub-words, expected at most {room:,}: "
                    "the rest is not read",
                )
