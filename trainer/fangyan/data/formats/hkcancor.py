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

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.data.example import Example, Splits, read_lines
from fangyan.data.splits import TaggedDataConfig
from fangyan.errors import UserError
from fangyan.packages import package_folder

PUNCTUATION_TAG = "w"


class HKCanCor(TaggedDataConfig):
    """The corpus inside pycantonese; splits are named by conversations.

    With ``tokens: characters``, words are cut into characters with B-/I- tags: segmentation and parts of
    speech as one task.
    """

    format: Literal["hkcancor"] = "hkcancor"
    corpus: ClassVar[str | None] = "HKCanCor (Luke & Wong 2015), CC BY 4.0"
    licence: ClassVar[str | None] = "cc-by-4.0"
    language: ClassVar[str | None] = "yue"

    path: str | None = Field(None, description="Folder of the .cha files, if not the installed one.")

    @override
    def load_named(self) -> Splits:
        """Return the named conversations; train is every one that is not held out, unless named too."""
        folder = Path(self.path) if self.path else corpus_folder()
        known = sorted(path.stem for path in folder.glob("*.cha"))
        if not known:
            raise UserError(f"{folder}: no .cha file in it, expected the conversations of HKCanCor")
        named = self.named()
        for name, conversations in named.items():
            for conversation in conversations:
                if conversation not in known:
                    raise UserError(f"data.{name}: no conversation {conversation!r} in {folder}")
        held_out = {*named.get("dev", []), *named.get("test", [])}
        named.setdefault("train", [name for name in known if name not in held_out])
        shared = held_out & set(named["train"])
        if shared:
            raise UserError(f"data.train: conversation {min(shared)!r} is also held out")
        return {
            name: self.read_files([str(folder / f"{conversation}.cha") for conversation in conversations])
            for name, conversations in named.items()
        }

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the turns of one CHAT file; see :class:`DataConfig`."""
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
                    raise UserError(
                        f"{path}:{first}: {len(words)} words but {len(tags)} tags on the %mor: line"
                    )
                speech = None
                if words:
                    yield self._example(words, tags, f"{path.name}:{first}", path.stem)

    def _example(self, words: list[str], tags: list[str], source: str, group: str) -> Example:
        tokens = words
        if self.tokens == "characters":
            tokens, tags = words_to_characters(words, tags)
        return Example({"tokens": tuple(tokens), "tags": tuple(tags)}, source, group)


def corpus_folder() -> Path:
    """Return where the installed ``pycantonese`` keeps the corpus; the package is not imported."""
    folder = package_folder("pycantonese", "data.format: hkcancor", "the corpus", "pip install pycantonese")
    return folder / "data" / "hkcancor"


def words_to_characters(words: list[str], tags: list[str]) -> tuple[list[str], list[str]]:
    """Join segmentation and tagging: ``B-`` on the first character of each word, ``I-`` on the others."""
    characters: list[str] = []
    joint: list[str] = []
    for word, tag in zip(words, tags, strict=True):
        characters.extend(word)
        joint.extend([f"B-{tag}"] + [f"I-{tag}"] * (len(word) - 1))
    return characters, joint


def _tag(item: str) -> str:
    tag, bar, _ = item.partition("|")
    return tag if bar else PUNCTUATION_TAG


def _joined_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines with their continuation lines (leading tab) appended, numbered by the first."""
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
