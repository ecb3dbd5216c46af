"""What is wrong with a run before it trains: a place and one sentence each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning"]

# A recipe's field, or a file and its line, before the first colon and space.
_PLACE = re.compile(r"(?P<place>\S+): (?P<message>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that keeps a run from training, or that its user has to know.

    Attributes:
        level: an error stops the run, a warning does not.
        place: ``file:line``, a split such as ``data.dev``, or a recipe's field; "" if it has none.
        message: what was found, and what is expected or can be done.
    """

    level: Level
    place: str
    message: str

    @classmethod
    def parse(cls, level: Level, sentence: str) -> Finding:
        """Return the finding of a message as errors have them: ``place: what was found``."""
        match = _PLACE.fullmatch(sentence)
        return cls(level, match["place"], match["message"]) if match else cls(level, "", sentence)

    def __str__(self) -> str:
        """Return it as one sentence."""
        return f"{self.place}: {self.message}" if self.place else self.message
