"""What a tagger has to be better than: each word has the tag that it has most often in train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class MostFrequentTags:
    """Tags words without looking at their neighbours.

    Args:
        sentences: of train, each its tokens and their labels.
    """

    def __init__(self, sentences: Iterable[tuple[Sequence[str], Sequence[str]]]):
        counts: dict[str, Counter[str]] = {}
        every: Counter[str] = Counter()
        for tokens, labels in sentences:
            for token, label in zip(tokens, labels, strict=True):
                counts.setdefault(token, Counter())[label] += 1
                every[label] += 1
        self._tags = {token: found.most_common(1)[0][0] for token, found in counts.items()}
        self._other = every.most_common(1)[0][0] if every else ""

    def tag(self, tokens: Sequence[str]) -> tuple[str, ...]:
        """Return a label for each token; of one that train does not have, the most frequent label of all."""
        return tuple(self._tags.get(token, self._other) for token in tokens)
