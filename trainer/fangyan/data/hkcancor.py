"""HKCanCor, the Hong Kong Cantonese Corpus (Luke & Wong 2015, CC BY 4.0), from its CHAT files.

The corpus ships inside the ``pycantonese`` package. Its ``.cha`` files are read here directly: the
package's API returns punctuation with an empty tag, and importing it loads its models.

A turn is a speaker line and a ``%mor:`` line, both continued by lines that start with a tab::

    *XXY:	講 今朝 參觀 貨櫃 碼頭 .
    %mor:	v|gong2 t|gam1ziu1 v|caam1gun1 n|fo3gwai6
        n|maa5tau4 .

Words and tags align one to one. Punctuation stands for itself on the ``%mor:`` line and gets the
tag set's own code for it, ``w``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from fangyan.data.examples import Example, read_lines, words_to_characters
from fangyan.errors import UserError

PUNCTUATION_TAG = "w"


def corpus_folder() -> Path:
    """Where the installed ``pycantonese`` keeps the corpus; the package is not imported."""
    spec = importlib.util.find_spec("pycantonese")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "data.format: hkcancor needs the package pycantonese (it carries the corpus), "
            "which is not installed; run: pip install pycantonese"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "hkcancor"


def read_conversation(path: Path, characters: bool) -> list[Example]:
    """One CHAT file as examples.

    Args:
        path: a ``.cha`` file.
        characters: tokens are characters with ``B-``/``I-`` tags; else words with plain tags.
    """
    examples = []
    speech: tuple[int, list[str]] | None = None
    for number, line in _joined_lines(path):
        if line.startswith("*"):
            speech = number, line.partition("\t")[2].split()
        elif line.startswith("%mor:"):
            if speech is None:
                raise UserError(f"{path}:{number}: a %mor: line with no speaker line before it")
            first, words = speech
            tags = [_tag(item) for item in line.partition("\t")[2].split()]
            if len(words) != len(tags):
                raise UserError(f"{path}:{first}: {len(words)} words but {len(tags)} tags on the %mor: line")
            speech = None
            tokens = words
            if characters:
                tokens, tags = words_to_characters(words, tags)
            if tokens:
                examples.append(Example(tuple(tokens), tuple(tags), f"{path}:{first}", path.stem))
    return examples


def _tag(item: str) -> str:
    tag, bar, _ = item.partition("|")
    return tag if bar else PUNCTUATION_TAG


def _joined_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their continuation lines (leading tab) appended, numbered by the first."""
    start, joined = 0, ""
    for number, line in read_lines(path):
        if line.startswith("\t"):
            joined += " " + line.strip()
            continue
        if joined:
            yield start, joined
        start, joined = number, line
    if joined:
        yield start, joined
