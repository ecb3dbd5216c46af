"""Questions with their contexts as the model takes them: long contexts in overlapping windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence, Tokenizer, with_span
from fangyan.tasks.extractive_qa.alignment import NOWHERE, Readings, Span, align, find_span


class Part(NamedTuple):
    """Some sub-words, and their segments where the tokenizer has them."""

    ids: list[int]
    segments: list[int]

    def cut(self, start: int, end: int) -> Part:
        """Return some of them."""
        return Part(self.ids[start:end], self.segments[start:end])


@dataclass(frozen=True)
class Encoded:
    """A question and its context in sub-words.

    Attributes:
        before: the question and special tokens.
        context: the sub-words of the context.
        after: special tokens.
        spans: the characters of each of the context's sub-words.
        readings: of each of these; see :class:`Readings`.
        room: sub-words of the context that a window has room for.
        cut: how many sub-words of the question have no room.
    """

    before: Part
    context: Part
    after: Part
    spans: list[Span]
    readings: list[str | None]
    room: int
    cut: int

    def bounds(self) -> list[Span]:
        """Return the first and last sub-word of each window, a quarter of each shared with the one before."""
        size, step = len(self.context.ids), self.room - self.room // 4
        last = max(size - self.room, 0)
        starts = (min(start, last) for start in range(0, last + step, step))
        return [(start, min(start + self.room, size)) for start in starts]

    def window(self, example: int, start: int, end: int) -> TokenizedSequence:
        """Return a window as a sequence, from which nothing is learned yet."""
        context = self.context.cut(start, end)
        ids = [*self.before.ids, *context.ids, *self.after.ids]
        segments = [*self.before.segments, *context.segments, *self.after.segments]
        nothing = [NOWHERE] * len(self.before.ids), [NOWHERE] * len(self.after.ids)
        spans = [*nothing[0], *self.spans[start:end], *nothing[1]]
        return TokenizedSequence(
            ids,
            [IGNORE_INDEX] * len(ids),
            example,
            segments=segments if any(segments) else [],
            characters=[place for span in spans for place in span],
        )

    def locate(self, text: str, answer: Mapping[str, Any]) -> Span | None:
        """Return the first and last of the context's sub-words that an answer lies on.

        None if they are not found, or are more than a window has room for: it cannot be learned.
        """
        start = answer["start"]
        found = find_span(text, self.spans, self.readings, start, start + len(answer["text"]))
        return found if found is not None and found[1] - found[0] < self.room else None

    def labelled(self, example: int, answer: Span | None) -> Iterator[TokenizedSequence]:
        """Yield the windows with what they learn: the answer, or the first sub-word where it is not whole.

        Args:
            example: index of the example.
            answer: its first and last sub-word; None where there is none. A window of its own is around one
                that is whole in no other.
        """
        bounds = self.bounds()
        if answer is not None and not any(_holds(bound, answer) for bound in bounds):
            first = max(0, (answer[0] + answer[1] + 1 - self.room) // 2)
            bounds.append((first, min(first + self.room, len(self.context.ids))))
        for bound in bounds:
            sequence = self.window(example, *bound)
            if answer is None or not _holds(bound, answer):
                yield with_span(sequence, 0, 0)
            else:
                shift = len(self.before.ids) - bound[0]
                yield with_span(sequence, answer[0] + shift, answer[1] + shift)


def _holds(bound: Span, answer: Span) -> bool:
    return bound[0] <= answer[0] and answer[1] < bound[1]


class Encoder:
    """Lays questions and contexts out for a model.

    Args:
        tokenizer: of the model.
        max_length: most sub-words of a sequence.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int):
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._readings = Readings(tokenizer.backend)

    def __call__(self, question: str, context: str) -> Encoded:
        """Return a pair in sub-words; a long question leaves the context a quarter of a sequence."""
        encoded = self._tokenizer.backend(question, context, return_offsets_mapping=True)
        whole = Part(list(encoded["input_ids"]), list(encoded.get("token_type_ids", [])))
        owners = encoded.sequence_ids(0)
        inside = [i for i, owner in enumerate(owners) if owner == 1]
        first, last = (inside[0], inside[-1] + 1) if inside else (len(owners), len(owners))
        before, after = whole.cut(0, first), whole.cut(last, len(owners))
        if not before.ids:  # a question of nothing: what is no answer needs a place
            before = Part([self._tokenizer.unknown_id], [0] if whole.segments else [])
        asked = [i for i, owner in enumerate(owners[:first]) if owner == 0]
        over = len(before.ids) + len(after.ids) - (self._max_length - self._max_length // 4)
        cut = min(max(over, 0), len(asked))
        if cut:
            end = asked[-1] + 1
            left, right = before.cut(0, end - cut), before.cut(end, len(before.ids))
            before = Part(left.ids + right.ids, left.segments + right.segments)
        readings = [self._readings(subword) for subword in whole.ids[first:last]]
        spans, readings = align(context, encoded["offset_mapping"][first:last], readings)
        room = self._max_length - len(before.ids) - len(after.ids)
        return Encoded(before, whole.cut(first, last), after, spans, readings, room, cut)
