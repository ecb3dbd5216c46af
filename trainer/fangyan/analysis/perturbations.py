"""What people type otherwise: slips of the keys, no diacritics or tones, another case or script.

Slips happen to a share of the words. To a way of writing, such as without diacritics, a writer keeps: it
changes every word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from typing_extensions import override

from fangyan.analysis.edits import RUNS, WHOLE, WORDS, clusters, edited, replaced
from fangyan.analysis.tables import check_once, read_pairs
from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.tasks.task import TokenUnit

# From a word to another; itself where there is nothing to change in it.
WordChange = Callable[[str, Random], str]

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Combining classes of marks that are vowels or change a consonant: of Indic scripts (0, 7, 9), kana (8), Thai
# and Lao, Tibetan. Without these a word is another; without other marks it is as many people type it.
_LETTERS = {0, 7, 8, 9, 103, 118, 129, 130, 132}
# Syllables of a romanisation with the numbers of their tones: hou2, nei5hou2.
_TONED = re.compile(r"(?:(?:[^\W\d_]*[aeiouyü][^\W\d_]*|h?m|h?ng)[1-9])+", re.IGNORECASE)


@dataclass(frozen=True)
class Perturbation:
    """One way in which texts are typed otherwise.

    Attributes:
        name: of it.
        change: of a word.
        rate: share of the words that can be changed, and are.
        pieces: finds the words of a text.
    """

    name: str
    change: WordChange
    rate: float = 1.0
    pieces: re.Pattern[str] = RUNS

    def __call__(self, example: Example, seed: str, unit: TokenUnit) -> Example:
        """Return an example as it is typed otherwise, with its labels.

        Args:
            example: to change.
            seed: what is drawn follows from it and the perturbation alone.
            unit: what tokens are.
        """
        draw = Random(f"{seed}/{self.name}")

        def change(words: Sequence[str]) -> list[str]:
            return [
                self.change(word, draw) if self.rate == 1.0 or draw.random() < self.rate else word
                for word in words
            ]

        return edited(example, change, unit, self.pieces)


@dataclass(frozen=True)
class Spelling(Perturbation):
    """Another way to write, by a file.

    Attributes:
        pairs: what is written, and how else.
    """

    pairs: Mapping[str, str] = field(default_factory=dict)

    @override
    def __call__(self, example: Example, seed: str, unit: TokenUnit) -> Example:
        """Return an example in the other way; where tokens are characters, what is written is several."""
        if unit == "words" or "tokens" not in example.fields:
            return super().__call__(example, seed, unit)
        runs = {}
        for sides in self.pairs.items():
            left, right = map(tuple, sides)
            # What has more or fewer characters would have no tags, and stays.
            runs[left] = right if len(left) == len(right) else left
        return edited(example, lambda tokens: replaced(tokens, runs), unit)


def perturbations(rate: float, mappings: Sequence[Path] = ()) -> list[Perturbation]:
    """Return all perturbations.

    Args:
        rate: share of the words with a slip of the keys.
        mappings: files with two columns, what is written and how else; each is one more.

    Raises:
        UserError: for a mapping that is none.
    """
    slips = {"swap": swap, "drop": drop, "double": double, "neighbour key": neighbour}
    ways = {
        "no diacritics": strip_diacritics,
        "no tone numbers": strip_tones,
        "lower case": lower,
        "upper case": upper,
    }
    found = [Perturbation(name, change, rate, WORDS) for name, change in slips.items()]
    found += [Perturbation(name, change) for name, change in ways.items()]
    for path in mappings:
        name = f"mapping {path.name}"
        if any(other.name == name for other in found):
            raise UserError(
                f"--mapping {path}: a file of this name is there twice, expected names that differ"
            )
        pairs = read_mapping(path)
        found.append(Spelling(name, mapped(pairs), pieces=WHOLE, pairs=pairs))
    return found


def swap(word: str, draw: Random) -> str:
    """Return a word with two neighbouring letters the other way round."""
    seen, letters = _letters(word)
    places = [i for i in letters if i + 1 in letters and seen[i] != seen[i + 1]]
    if places:
        i = draw.choice(places)
        seen[i : i + 2] = seen[i + 1], seen[i]
    return "".join(seen)


def drop(word: str, draw: Random) -> str:
    """Return a word without one of its letters; never without the only one."""
    seen, places = _letters(word)
    if places and len(seen) > 1:
        del seen[draw.choice(places)]
    return "".join(seen)


def double(word: str, draw: Random) -> str:
    """Return a word with one of its letters twice; a word of one character stays."""
    seen, places = _letters(word)
    if places and len(seen) > 1:
        seen[draw.choice(places)] *= 2
    return "".join(seen)


def neighbour(word: str, draw: Random) -> str:
    """Return a word with one of its letters replaced by one beside it on a QWERTY keyboard."""
    places = [i for i, letter in enumerate(word) if letter.lower() in _NEIGHBOURS]
    if not places:
        return word
    i = draw.choice(places)
    new = draw.choice(_NEIGHBOURS[word[i].lower()])
    return word[:i] + (new.upper() if word[i].isupper() else new) + word[i + 1 :]


def strip_diacritics(word: str, draw: Random) -> str:  # noqa: ARG001
    """Return a word without the marks that its letters are also typed without (of NFD).

    Tone marks of Pinyin, Pe̍h-ōe-jī or Vietnamese are such, and the points of Hebrew and Arabic; the vowel
    signs of Indic scripts are none.
    """
    apart = unicodedata.normalize("NFD", word)
    kept = [c for c in apart if unicodedata.category(c) != "Mn" or unicodedata.combining(c) in _LETTERS]
    if not kept or len(kept) == len(apart):
        return word
    return unicodedata.normalize("NFC", "".join(kept))


def strip_tones(word: str, draw: Random) -> str:  # noqa: ARG001
    """Return a romanised word without the numbers of its tones: hou of hou2."""
    head = re.match(r"\W*", word)
    tail = re.search(r"\W*$", word)
    assert head is not None
    assert tail is not None
    core = word[head.end() : tail.start()]
    return word if _TONED.fullmatch(core) is None else head[0] + re.sub(r"[1-9]", "", core) + tail[0]


def lower(word: str, draw: Random) -> str:  # noqa: ARG001
    """Return a word in lower case."""
    return word.lower()


def upper(word: str, draw: Random) -> str:  # noqa: ARG001
    """Return a word in capitals."""
    return word.upper()


def mapped(pairs: Mapping[str, str]) -> WordChange:
    """Return what writes all of some pairs in the other way, the longest first."""
    longest_first = sorted(pairs, key=lambda key: -len(key))
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    return lambda word, draw: pattern.sub(lambda match: pairs[match[0]], word)  # noqa: ARG005


def read_mapping(path: Path) -> dict[str, str]:
    """Return what a file says is written, and how else.

    Raises:
        UserError: naming the line that is no pair, or whose left side another has.
    """
    pairs: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, left, right in read_pairs(path):
        check_once(path, number, left, lines)
        pairs[left] = right
    return pairs


def _letters(word: str) -> tuple[list[str], list[int]]:
    """Return a word's characters, and which of them are letters."""
    seen = clusters(word)
    return seen, [i for i, character in enumerate(seen) if character[0].isalpha()]


def _keys() -> dict[str, str]:
    """Return the letters beside each on a QWERTY keyboard; a row is half a key to the right of that above."""
    found = {}
    for r, row in enumerate(_ROWS):
        for c, key in enumerate(row):
            around = [(r, c - 1), (r, c + 1), (r - 1, c), (r - 1, c + 1), (r + 1, c - 1), (r + 1, c)]
            found[key] = "".join(
                _ROWS[i][j] for i, j in around if 0 <= i < len(_ROWS) and 0 <= j < len(_ROWS[i])
            )
    return found


_NEIGHBOURS = _keys()
