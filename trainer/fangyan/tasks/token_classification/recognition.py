"""Which notation the tags of a data set are in, and where they break its rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, NamedTuple, NoReturn

from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.tasks.token_classification.scheme import (
    OUTSIDE,
    PREFIXES,
    Mark,
    Notation,
    Scheme,
    Style,
    continues,
)

# What ``task.scheme`` may say.
Wanted = Literal["auto", "segmentation", "iob2", "iob1", "iobes", "bilou", "bmes", "io", "plain"]
# Two tags in a row; None is the sentence's begin or end.
Pair = tuple[str | None, str | None]

_SEPARATORS = "-_:/|"


class Place(NamedTuple):
    """A token, for messages.

    Attributes:
        source: of its example.
        number: of the token in the example, from 0.
        token: its text.
    """

    source: str
    number: int
    token: str

    def describe(self, line_per_token: bool) -> str:
        """Return file and line of the token, or those of its example and the token's number."""
        path, _, line = self.source.rpartition(":")
        if line_per_token and line.isdecimal():
            return f"{path}:{int(line) + self.number}"
        return f"{self.source} (token {self.number + 1})"


@dataclass(slots=True)
class TagPairs:
    """The tags of examples, two by two: what recognition and messages need, in one pass over the data.

    Attributes:
        counts: how often each pair of neighbours occurs.
        places: of the second tag of the first such pair; at a sentence's end, of its last token.
    """

    counts: Counter[Pair] = field(default_factory=Counter)
    places: dict[Pair, Place] = field(default_factory=dict)

    @classmethod
    def of(cls, examples: Iterable[Example]) -> TagPairs:
        """Return the pairs of all examples that have tags."""
        pairs = cls()
        for example in examples:
            tokens, tags = example.fields["tokens"], example.fields.get("tags", ())
            for i, pair in enumerate(zip((None, *tags), (*tags, None), strict=True)):
                pairs.counts[pair] += 1
                if pair not in pairs.places and tags:
                    last = min(i, len(tags) - 1)
                    pairs.places[pair] = Place(example.source, last, tokens[last])
        return pairs

    def tags(self) -> Counter[str]:
        """Return how often each tag occurs."""
        tags: Counter[str] = Counter()
        for (_, tag), count in self.counts.items():
            if tag is not None:
                tags[tag] += count
        return tags

    def first(self, tag: str) -> Place:
        """Return a place of a tag."""
        return next(place for pair, place in self.places.items() if pair[1] == tag)


class Recognised(NamedTuple):
    """What the tags of a data set are.

    Attributes:
        scheme: what they mark.
        notation: how they are written.
        message: for the user, where it is not plain to see; or "".
    """

    scheme: Scheme
    notation: Notation
    message: str = ""


def recognise(pairs: TagPairs, wanted: Wanted, labels: Sequence[str] = ()) -> Recognised:
    """Return scheme and notation of a training split's tags.

    Args:
        pairs: of the training split.
        wanted: the recipe's ``task.scheme``.
        labels: the recipe's tag set, if it has one.

    Raises:
        UserError: naming the place of a tag that is not of the scheme that the recipe names, or that most
            other tags are of.
    """
    tags = pairs.tags() + Counter(labels)
    if set(tags) == {OUTSIDE}:
        raise UserError(f"data.train: all of its {tags[OUTSIDE]:,} tags are O, expected something to learn")
    if wanted == "plain" or not tags:
        return Recognised("plain", Notation("plain"))
    if wanted == "io":
        return Recognised("iob2", Notation("io"))
    marks_words = wanted == "segmentation" or (wanted == "auto" and OUTSIDE not in tags)
    scheme: Scheme = "segmentation" if marks_words else "iob2"
    styles: Sequence[Style] = ("iob2", "iobes", "bmes", "bilou")
    if wanted != "auto" and wanted != "segmentation":
        styles = (wanted,)
    notation, strange = _closest(tags, styles, wanted == "auto")
    marked = tags.total() - tags[OUTSIDE]
    if wanted == "auto" and 2 * sum(tags[tag] for tag in strange) >= marked:
        return _without_prefixes(tags)
    if strange or (wanted == "segmentation" and OUTSIDE in tags):
        _refuse(pairs, (strange or [OUTSIDE])[0], notation, wanted)
    if wanted != "auto":
        return Recognised(scheme, notation)
    if notation.style == "iob2" and scheme == "iob2":
        notation = _iob1_or_iob2(pairs, notation)
    return Recognised(scheme, notation, _message(notation, tags))


def _closest(tags: Counter[str], styles: Sequence[Style], guess: bool) -> tuple[Notation, list[str]]:
    """Return the notation that has most of the tags, the first of equals, and the tags that it lacks.

    Args:
        tags: how often each occurs.
        styles: of notation, to choose from.
        guess: whether they may be of none.
    """
    layouts = [(separator, last) for last in (False, True) for separator in _SEPARATORS]
    candidates = [Notation(style, *layout) for layout, style in product([*layouts, ("", False)], styles)]
    lacking = [_lacking(tags, notation, guess) for notation in candidates]
    wrong = [sum(tags[tag] for tag in strange) for strange in lacking]
    best = wrong.index(min(wrong))
    return candidates[best], lacking[best]


def _lacking(tags: Iterable[str], notation: Notation, guess: bool) -> list[str]:
    """Return the tags that a notation lacks; in a guess all of them, if those that it has say too little."""
    marks = {tag: notation.parse(tag) for tag in tags}
    roles = {mark.role for mark in marks.values() if mark is not None}
    alone = not notation.separator
    # Without O, something has to begin. Tags of one letter may be parts of speech; B beside I or E is none.
    begins, goes_on = "B" in roles, bool(roles & {"I", "E"})
    if guess and ((not begins and (alone or OUTSIDE not in marks)) or (alone and not goes_on)):
        return [tag for tag in marks if tag != OUTSIDE]
    return [tag for tag, mark in marks.items() if mark is None]


def _without_prefixes(tags: Counter[str]) -> Recognised:
    """Return types alone where O is the most frequent tag, otherwise plain labels, of which O may be one."""
    others = [count for tag, count in tags.items() if tag != OUTSIDE]
    if OUTSIDE not in tags:
        return Recognised("plain", Notation("plain"))
    if tags[OUTSIDE] <= max(others):
        message = (
            "task.scheme: tags are plain labels, and one of them is O; task.scheme=io takes the others for "
            "types of entities"
        )
        return Recognised("plain", Notation("plain"), message)
    message = (
        "task.scheme: tags are types without prefixes, and O most often: neighbours of one type are read as "
        "one entity; task.scheme=plain takes them for plain labels"
    )
    return Recognised("iob2", Notation("io"), message)


def _iob1_or_iob2(pairs: TagPairs, notation: Notation) -> Notation:
    """Tell the two by how entities begin: in IOB1 with I-, but for one right after another of its type."""
    begins: Counter[str] = Counter()
    for (previous, tag), count in pairs.counts.items():
        mark, before = _parse(notation, tag), _parse(notation, previous)
        if mark is not None and mark.role != OUTSIDE and (before is None or before.type != mark.type):
            begins[mark.role] += count
    if begins["I"] <= begins["B"]:
        return notation
    return Notation("iob1", notation.separator, notation.prefix_last)


def _parse(notation: Notation, tag: str | None) -> Mark | None:
    return None if tag is None else notation.parse(tag)


def _message(notation: Notation, tags: Iterable[str]) -> str:
    if notation == Notation("iob2"):
        return ""
    example = min(tag for tag in tags if tag != OUTSIDE)
    return f"task.scheme: tags are {notation.name}, such as {example}; predictions are written so too"


def _refuse(pairs: TagPairs, tag: str, notation: Notation, wanted: Wanted) -> NoReturn:
    """Raise the error of a tag that is not of the notation."""
    name = "segmentation" if wanted == "segmentation" else notation.name
    expected = f"not of scheme {name}, expected {', '.join(PREFIXES[notation.style])}"
    if notation.separator:
        expected += f" {'after' if notation.prefix_last else 'before'} {notation.separator!r} and a type"
    if wanted != "segmentation":
        expected += ", or O"
    if not any(second == tag for _, second in pairs.places):
        raise UserError(f"task.labels: {tag!r} is {expected}")
    place = pairs.first(tag)
    hint = ", as most tags have, or task.scheme=plain" if wanted == "auto" else ""
    raise UserError(f"{place.source}: tag {tag!r} at token {place.token!r} is {expected}{hint}")


def broken_rule(pair: Pair, notation: Notation, scheme: Scheme) -> str:
    """Return which rule of a notation two neighbours break, such as ``I-PER after O``, or "".

    Args:
        pair: as :class:`TagPairs` has them.
        notation: of the file.
        scheme: what its tags mark.
    """
    previous, tag = pair
    if notation.style in ("plain", "io"):
        return ""
    mark, before = _parse(notation, tag), _parse(notation, previous)
    if tag is not None and mark is None:
        return ""
    goes_on = mark is not None and continues(before, mark, scheme)
    if mark is not None and notation.style == "iob1":
        wrong = mark.role == "B" and (before is None or before.type != mark.type)
    else:
        wrong = mark is not None and mark.role in "IE" and not goes_on
    if wrong:
        return f"{tag} {f'after {previous}' if previous else 'begins the sentence'}"
    if notation.has_ends and before is not None and before.role in "BI" and not goes_on:
        return f"{previous} {f'before {tag}' if tag else 'ends the sentence'}"
    return ""
