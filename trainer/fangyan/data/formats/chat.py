"""CHAT transcripts of TalkBank (https://talkbank.org/0info/manuals/CHAT.pdf).

A turn is a speaker line and tiers below it, each continued by lines that start with a tab::

    *CHI:	I want &-um <a dog> [/] a cookie .
    %mor:	pron|I verb|want det|a noun|cookie .

The items of ``%mor:`` and of other tiers of words align with the words of the speaker line: not with what is
retraced, unintelligible or no word, and punctuation stands for itself.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from typing_extensions import override

from fangyan.data.compression import stem
from fangyan.data.example import Example, read_lines
from fangyan.data.splits import TaggedDataConfig
from fangyan.errors import UserError

_TIME = re.compile("\x15[^\x15]*\x15")
_PIECE = re.compile(r"\[[^\]]*\]|[<>]|[^\s<>\[\]]+")
# Codes that exclude what is before them: it is said again, or is no part of the sentence.
_EXCLUDING = ("/", "//", "///", "/-", "/?", "e")
# Not aligned: fillers, fragments and events; omitted and unintelligible words; pauses; linkers.
_NO_WORD = re.compile(r"""&.*|0.*|(?:xxx|yyy|www)(?:@.*)?|\([\d.:]+\)|\+["^,+≈≋]""")
# Marks within a word: how it is said, and what kind of word it is.
_MARKS = re.compile(r"@[\w:$&*]+$|[()^]|(?<=\w):+")


class Turn(NamedTuple):
    """What somebody says.

    Attributes:
        speaker: their code.
        speech: the speaker line.
        tier: what one of the tiers below has on it.
        line: number of the speaker line.
        tier_line: of the tier's.
    """

    speaker: str
    speech: str
    tier: str
    line: int
    tier_line: int


def turns(path: Path, prefix: str) -> Iterator[Turn]:
    """Yield the turns of a file that have a tier.

    Args:
        path: of the file.
        prefix: of the tier's lines, such as ``%mor:``.

    Raises:
        UserError: naming a line of the tier that follows no speaker line.
    """
    speech: tuple[int, str, str] | None = None
    for number, line in _joined_lines(path):
        head, _, content = line.partition("\t")
        if line.startswith("*"):
            speech = number, head[1:].rstrip(":"), content
        elif line.startswith(prefix):
            if speech is None:
                raise UserError(f"{path}:{number}: a {prefix} line with no speaker line before it")
            yield Turn(speech[1], speech[2], content, speech[0], number)
            speech = None


class ChatFiles(TaggedDataConfig, ABC):
    """Formats whose files are CHAT transcripts; a file's turns are never divided between splits.

    With ``tokens: characters``, words are cut into characters with B-/I- tags: segmentation and tagging as
    one task.
    """

    @property
    @abstractmethod
    def tag_tier(self) -> str:
        """Return the name of the tier that has the tags."""

    @abstractmethod
    def words(self, speech: str) -> list[str]:
        """Return the words of a speaker line that the tier is aligned with."""

    @abstractmethod
    def tags(self, tier: str, source: str) -> list[str]:
        """Return the tags of a tier."""

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the turns of a file that have the tier; see :class:`DataConfig`."""
        prefix = f"%{self.tag_tier}:"
        for turn in turns(path, prefix):
            words, tags = self.words(turn.speech), self.tags(turn.tier, f"{path}:{turn.tier_line}")
            if len(words) != len(tags):
                raise UserError(
                    f"{path}:{turn.line}: {len(words)} words but {len(tags)} tags on the {prefix} line"
                )
            if words:
                yield self._example(words, tags, f"{path.name}:{turn.line}", stem(path))

    @override
    def read_unlabelled(self, path: Path) -> Iterator[Example]:
        for example in self.read(path):
            yield Example({"tokens": example.fields["tokens"]}, example.source, example.group)

    @override
    def metadata(self, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield who speaks in which conversation; see :class:`DataConfig`."""
        for turn in turns(path, f"%{self.tag_tier}:"):
            yield f"{path.name}:{turn.line}", {"speaker": turn.speaker, "conversation": stem(path)}

    def _example(self, words: list[str], tags: list[str], source: str, group: str) -> Example:
        tokens = words
        if self.tokens == "characters":
            tokens, tags = words_to_characters(words, tags)
        return Example({"tokens": tuple(tokens), "tags": tuple(tags)}, source, group)


class Chat(ChatFiles):
    """CHAT transcripts: words and the tags of one of their tiers, by default parts of speech of ``%mor``."""

    format: Literal["chat"] = "chat"

    tier: Annotated[str, Field(pattern=r"^[a-z]+$")] = Field(
        "mor",
        description="The tier with a tag for every word: in items such as n|dog, what is before the bar.",
    )

    @property
    @override
    def tag_tier(self) -> str:
        """Return the recipe's tier."""
        return self.tier

    @override
    def words(self, speech: str) -> list[str]:
        """Return the words that TalkBank aligns; see the module."""
        return aligned_words(speech)

    @override
    def tags(self, tier: str, source: str) -> list[str]:
        """Return parts of speech: ``pron~aux`` of ``pron|it~aux|be``; punctuation is its own."""
        items = [item for item in tier.split() if not item.startswith("0")]  # old: 0v|v, an omitted word
        for item in items:
            if "^" in item:
                raise UserError(f"{source}: {item} leaves the choice of a tag open, expected one")
        return [re.sub(r"\|[^~$]*", "", item) for item in items]


def aligned_words(speech: str) -> list[str]:
    """Return the words of a speaker line that ``%mor`` has an item for."""
    words: list[str] = []
    groups: list[int] = []
    last = 0  # where the last word or group begins
    for piece in _PIECE.findall(_TIME.sub(" ", speech).replace("+<", " ")):
        if piece == "<":
            groups.append(len(words))
        elif piece == ">":
            last = groups.pop() if groups else last
        elif piece.startswith("["):
            code = piece[1:-1].strip()
            if code in _EXCLUDING:
                del words[last:]
            elif code.startswith(": ") and len(meant := code[2:].split()) > 1:
                # `gonna [: going to]` has two items. A single one is of the word as it was said.
                words[last:] = meant
        else:
            last = len(words)
            if not _NO_WORD.fullmatch(piece):
                words.append(_MARKS.sub("", piece) or piece)
    return words


def words_to_characters(words: list[str], tags: list[str]) -> tuple[list[str], list[str]]:
    """Join segmentation and tagging: ``B-`` on the first character of each word, ``I-`` on the others."""
    characters: list[str] = []
    joint: list[str] = []
    for word, tag in zip(words, tags, strict=True):
        characters.extend(word)
        joint.extend([f"B-{tag}"] + [f"I-{tag}"] * (len(word) - 1))
    return characters, joint


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
