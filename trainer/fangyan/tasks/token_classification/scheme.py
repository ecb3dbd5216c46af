"""What tags mark, and the notations that files write it in; within the trainer all are IOB2 or its like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

# What a tag set marks: words, entities, or nothing but its tokens.
Scheme = Literal["segmentation", "iob2", "plain"]
# How a file writes its tags; ``io`` has types alone, and ``O``.
Style = Literal["iob2", "iob1", "iobes", "bilou", "bmes", "io", "plain"]

OUTSIDE = "O"
# The type of tags that are a prefix alone, as seqeval calls it.
NO_TYPE = "_"

# What the prefixes of each style mean: begin, inside, end, single.
PREFIXES: dict[Style, str] = {
    "iob2": "BI",
    "iob1": "BI",
    "iobes": "BIES",
    "bilou": "BILU",
    "bmes": "BMES",
}
_ROLES = "BIES"
_NAMES: dict[Style, str] = {
    "iob2": "IOB2",
    "iob1": "IOB1",
    "iobes": "IOBES",
    "bilou": "BILOU",
    "bmes": "BMES",
    "io": "types without prefixes",
    "plain": "plain labels",
}


def exported(config: Mapping[str, Any], field: str, kind: Any) -> Any:
    """Return a field of an export.

    Args:
        config: what the task's ``export_config`` returned.
        field: its name.
        kind: a ``Literal`` of its values.

    Raises:
        ValueError: if it is not there, or none of them.
    """
    if field not in config:
        raise ValueError(f"fangyan has no field {field!r}, expected a whole export")
    if config[field] not in get_args(kind):
        found, expected = str(config[field])[:60], ", ".join(get_args(kind))
        raise ValueError(f"fangyan.{field} is {found!r}, expected one of {expected}")
    return config[field]


class Mark(NamedTuple):
    """What a tag says of its token.

    Attributes:
        role: ``B`` (begin), ``I`` (inside), ``E`` (end), ``S`` (single) or ``O`` (outside).
        type: of the word or entity.
    """

    role: str
    type: str


@dataclass(frozen=True, slots=True)
class Notation:
    """How a file writes tags.

    Attributes:
        style: which prefixes there are, and when.
        separator: between prefix and type; "" if tags are prefixes alone.
        prefix_last: whether the prefix comes after the type: ``LOC-B``.
    """

    style: Style
    separator: str = "-"
    prefix_last: bool = False

    @classmethod
    def from_export(cls, config: Any) -> Notation:
        """Return what :meth:`to_export` wrote.

        Raises:
            ValueError: if it is not that.
        """
        is_whole = isinstance(config, dict) and config.keys() == set(cls.__slots__)
        if (
            not is_whole
            or config["style"] not in get_args(Style)
            or not isinstance(config["separator"], str)
            or not isinstance(config["prefix_last"], bool)
        ):
            expected = ", ".join(cls.__slots__)
            raise ValueError(f"fangyan.notation is {str(config)[:80]}, expected {expected}")
        return cls(**config)

    def to_export(self) -> dict[str, Any]:
        """Return the notation as an export has it."""
        return asdict(self)

    @property
    def name(self) -> str:
        """Return what the style is called."""
        return _NAMES[self.style]

    @property
    def has_ends(self) -> bool:
        """Return whether the last token of a word or entity has a prefix of its own."""
        return len(PREFIXES.get(self.style, "")) == len(_ROLES)

    def parse(self, tag: str) -> Mark | None:
        """Return what a tag says, or None if it is not of this notation."""
        return _parse(self, tag)

    def label_set(self, tags: Iterable[str]) -> list[str]:
        """Return the labels of a tag set: itself, or ``B-`` and ``I-`` of each of its types, and ``O``."""
        tags = list(tags)
        if self.style == "plain":
            return tags
        marks = [mark for mark in map(self.parse, tags) if mark is not None and mark.role != OUTSIDE]
        outside = [OUTSIDE] if OUTSIDE in tags else []
        return outside + [
            f"{prefix}-{kind}" for kind in sorted({mark.type for mark in marks}) for prefix in "BI"
        ]

    def _mark(self, tag: str) -> Mark:
        """Return what a tag says; one of another notation is taken for the name of a type."""
        return self.parse(tag) or Mark("I", tag)

    def read(self, tags: Sequence[str], scheme: Scheme) -> list[str]:
        """Return tags as IOB2, or as B-/I- of a segmentation.

        What has nothing before it to continue begins a word or entity, as conlleval reads it (Tjong Kim Sang
        & Buchholz 2000): an ``I-x`` after ``O``, an ``E-x`` without its ``B-x``.

        Args:
            tags: of a sentence, as the file has them.
            scheme: what they mark.
        """
        if self.style == "plain":
            return list(tags)
        read = []
        previous: Mark | None = None
        for mark in map(self._mark, tags):
            if mark.role == OUTSIDE:
                read.append(OUTSIDE)
            else:
                read.append(f"{'I' if continues(previous, mark, scheme) else 'B'}-{mark.type}")
            previous = mark
        return read

    def write(self, tags: Sequence[str]) -> list[str]:
        """Return tags of IOB2, or B-/I- of a segmentation, as the file has them."""
        if self.style == "plain":
            return list(tags)
        around = [None, *tags, None]
        return [self.write_one(*around[i : i + 3]) for i in range(len(tags))]  # type: ignore[arg-type]

    def write_one(self, previous: str | None, tag: str, following: str | None) -> str:
        """Return one tag as the file has it; see :meth:`write`.

        Args:
            previous: the tag before it in IOB2; None at the sentence's begin.
            tag: in IOB2. An ``I-x`` that continues nothing is written as a ``B-x``.
            following: the tag after it; None at the sentence's end.
        """
        if self.style == "plain" or tag == OUTSIDE:
            return tag
        kind = tag[2:]
        inside = f"I-{kind}"
        follows = previous in (f"B-{kind}", inside)
        begins, ends = tag != inside or not follows, following != inside
        if self.style == "io":
            return kind
        prefixes = PREFIXES[self.style]
        if self.style == "iob1":
            prefix = "B" if begins and follows else "I"
        elif self.style == "iob2":
            prefix = "B" if begins else "I"
        elif begins:
            prefix = prefixes[3] if ends else prefixes[0]
        else:
            prefix = prefixes[2] if ends else prefixes[1]
        if not self.separator:
            return prefix
        return f"{kind}{self.separator}{prefix}" if self.prefix_last else f"{prefix}{self.separator}{kind}"


@lru_cache(maxsize=100_000)
def _parse(notation: Notation, tag: str) -> Mark | None:
    if tag == OUTSIDE:
        return Mark(OUTSIDE, "")
    if notation.style == "io":
        return Mark("I", tag)
    if not notation.separator:
        prefix, kind = tag, NO_TYPE
    elif notation.prefix_last:
        kind, _, prefix = tag.rpartition(notation.separator)
    else:
        prefix, _, kind = tag.partition(notation.separator)
    place = PREFIXES[notation.style].find(prefix) if len(prefix) == 1 else -1
    return Mark(_ROLES[place], kind) if place >= 0 and kind else None


def continues(previous: Mark | None, mark: Mark, scheme: Scheme) -> bool:
    """Return whether a token is in the same word or entity as the one before it.

    A word has the tag of its first token, whatever the types of the others.
    """
    if previous is None or mark.role not in "IE" or previous.role not in "BI":
        return False
    return scheme == "segmentation" or previous.type == mark.type
