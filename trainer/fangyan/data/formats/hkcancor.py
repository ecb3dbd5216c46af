"""HKCanCor, the Hong Kong Cantonese Corpus (Luke & Wong 2015, CC BY 4.0), from its CHAT files.

The corpus ships inside the ``pycantonese`` package. Its ``.cha`` files are read here directly: the
package's API returns punctuation with an empty tag, and importing it loads its models.

Words and tags align one to one. Punctuation stands for itself on the ``%mor:`` line and gets the
tag set's own code for it, ``w``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
from pydantic import Field
from typing_extensions import Self, override

from fangyan.config import PathName
from fangyan.data.example import Example, Splits
from fangyan.data.formats.chat import ChatFiles, Turn, turns
from fangyan.errors import UserError
from fangyan.packages import package_folder
from fangyan.suggestions import did_you_mean

PUNCTUATION_TAG = "w"
_SENTENCE_TYPES = {".": "statement", "?": "question"}
# Proper nouns by their tags; before these may stand x (of another language) and j (an abbreviation).
_NAMES = {"nr": "PER", "ns": "LOC", "nt": "ORG", "nz": "MISC"}
# Who, where, when, how many: what answers, by its tag.
_QUESTIONS = {"nr": "講緊邊個?", "ns": "講緊邊度?", "t": "講緊幾時?", "m": "講緊幾多?"}
# What the examples of each content have.
_FIELDS: dict[str, tuple[str, ...]] = {
    "words": ("tokens", "tags"),
    "names": ("tokens", "tags"),
    "answers": ("question", "context", "answers"),
    "sentence_types": ("text", "label"),
    "jyutping": ("messages",),
    "replies": ("messages",),
}


class HKCanCor(ChatFiles):
    """The corpus inside pycantonese; splits are named by conversations.

    With ``tokens: characters``, words are cut into characters with B-/I- tags: segmentation and parts of
    speech as one task.
    """

    fields: ClassVar[tuple[str, ...]] = (
        *("tokens", "tags", "text", "label", "messages"),
        *("question", "context", "answers"),
    )
    chooser: ClassVar[str] = "content"
    format: Literal["hkcancor"] = "hkcancor"
    corpus: ClassVar[str | None] = "HKCanCor (Luke & Wong 2015), CC BY 4.0"
    licence: ClassVar[str | None] = "cc-by-4.0"
    language: ClassVar[str | None] = "yue"

    content: Literal["words", "names", "sentence_types", "answers", "jyutping", "replies"] = Field(
        "words",
        description="words: with their tags. names: tokens with people (PER), places (LOC), organisations "
        "(ORG) and others (MISC). sentence_types: utterances as text, labelled as question or statement by "
        "the mark at their end, which is cut off. answers: to who, where, when and how many, where an "
        "utterance says it. jyutping: conversations of an utterance in Jyutping and its characters. replies: "
        "of each question and what another speaker answers.",
    )
    path: PathName | None = Field(None, description="Folder of the .cha files, if not the installed one.")

    @override
    def load_named(self) -> Splits:
        """Return the named conversations; train is every one that is not held out, unless named too."""
        folder = self._folder
        return {
            name: self.read_files([str(folder / f"{conversation}.cha") for conversation in conversations])
            for name, conversations in self._conversations().items()
        }

    @override
    def without_test(self) -> Self:
        """Return the data without test; train, which is all that is held out nowhere, has to be named."""
        if "test" not in self.named():
            return self
        return self.model_copy(update={"train": self._conversations()["train"], "test": None})

    @property
    def _folder(self) -> Path:
        return Path(self.path) if self.path else corpus_folder()

    def _conversations(self) -> dict[str, list[str]]:
        """Return the names of each split's conversations."""
        folder = self._folder
        known = sorted(path.stem for path in folder.glob("*.cha"))
        if not known:
            raise UserError(f"{folder}: no .cha file in it, expected the conversations of HKCanCor")
        named = self.named()
        for name, conversations in named.items():
            for conversation in conversations:
                if conversation not in known:
                    hint = did_you_mean(conversation, known)
                    raise UserError(f"data.{name}: no conversation {conversation!r} in {folder}{hint}")
        held_out = {*named.get("dev", []), *named.get("test", [])}
        named.setdefault("train", [name for name in known if name not in held_out])
        shared = held_out & set(named["train"])
        if shared:
            raise UserError(f"data.train: conversation {min(shared)!r} is also held out")
        return named

    @pydantic.model_validator(mode="after")
    def _tokens_are_of_words(self) -> HKCanCor:
        if "tokens" not in _FIELDS[self.content] and self.tokens != "words":
            raise ValueError(f"tokens is {self.tokens}, but content is {self.content}, which has no tags")
        return self

    @override
    def choice(self, needed: Sequence[str]) -> str:
        """Return the contents that have what a task needs."""
        fitting = [name for name, fields in _FIELDS.items() if set(needed) <= set(fields)]
        return " or ".join(fitting) or "another format"

    @property
    @override
    def provided(self) -> tuple[str, ...]:
        """Return the fields of the recipe's content."""
        return _FIELDS[self.content]

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the examples of a conversation; see :attr:`content`."""
        if self.content == "words":
            return super().read(path)
        readers = {
            "names": self._names,
            "sentence_types": self._sentence_types,
            "answers": self._answers,
            "jyutping": self._jyutping,
            "replies": self._replies,
        }
        return readers[self.content](path)

    def _names(self, path: Path) -> Iterator[Example]:
        for example in self._tagged_words(path):
            tokens: list[str] = []
            tags: list[str] = []
            before = None
            for word, tag in zip(example.fields["tokens"], example.fields["tags"], strict=True):
                name = _NAMES.get(tag.lstrip("xj"))
                pieces = list(word) if self.tokens == "characters" else [word]
                tokens += pieces
                first = "O" if name is None else f"{'I' if name == before else 'B'}-{name}"
                tags += [first] + [f"I-{name}" if name else "O"] * (len(pieces) - 1)
                before = name
            yield Example({"tokens": tuple(tokens), "tags": tuple(tags)}, example.source, example.group)

    def _answers(self, path: Path) -> Iterator[Example]:
        for number, example in enumerate(self._tagged_words(path)):
            words, tags = example.fields["tokens"], example.fields["tags"]
            found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _QUESTIONS}
            for start, end, kind in _answer_spans(tags):
                place = len(written(words[: start + 1])) - len(words[start])
                found[kind].append({"text": written(words[start:end]), "start": place})
            # Of an utterance that answers something, one question more, which it does not answer.
            unanswered = [kind for kind, answers in found.items() if not answers]
            if len(unanswered) == len(found):
                continue
            other = unanswered[number % len(unanswered)] if unanswered else None
            for kind, answers in found.items():
                if answers or kind == other:
                    fields = {
                        "question": _QUESTIONS[kind],
                        "context": written(words),
                        "answers": tuple(answers),
                    }
                    yield Example(fields, example.source, example.group)

    def _tagged_words(self, path: Path) -> Iterator[Example]:
        return self.model_copy(update={"content": "words", "tokens": "words"}).read(path)

    def _sentence_types(self, path: Path) -> Iterator[Example]:
        for example in super().read(path):
            *words, mark = example.fields["tokens"]
            if mark in _SENTENCE_TYPES and words:
                fields = {"text": written(words), "label": _SENTENCE_TYPES[mark]}
                yield Example(fields, example.source, example.group)

    def _jyutping(self, path: Path) -> Iterator[Example]:
        for turn in turns(path, f"%{self.tag_tier}:"):
            words = self.words(turn.speech)
            items = [item.rpartition("|")[2] for item in turn.tier.split()]
            if words:
                yield _conversation(path, turn, " ".join(items), written(words))

    def _replies(self, path: Path) -> Iterator[Example]:
        for question, reply in pairwise(turns(path, f"%{self.tag_tier}:")):
            asked, said = self.words(question.speech), self.words(reply.speech)
            if asked[-1:] == ["?"] and said and question.speaker != reply.speaker:
                yield _conversation(path, question, written(asked), written(said))

    @property
    @override
    def tag_tier(self) -> str:
        """Return ``mor``."""
        return "mor"

    @override
    def words(self, speech: str) -> list[str]:
        """Return all words: the corpus has none that are not aligned."""
        return speech.split()

    @override
    def tags(self, tier: str, source: str) -> list[str]:
        """Return parts of speech, and the tag set's own code for punctuation."""
        items = (item.partition("|") for item in tier.split())
        return [tag if bar else PUNCTUATION_TAG for tag, bar, _ in items]


def _conversation(path: Path, turn: Turn, question: str, answer: str) -> Example:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Example({"messages": messages}, f"{path.name}:{turn.line}", path.stem)


def _answer_spans(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield where words answer a question, from which to before which, and its kind.

    Neighbours of one kind are one answer, and so are a number and its classifier (``q``).
    """
    start = 0
    kinds = [tag.lstrip("xj") for tag in tags]
    while start < len(kinds):
        end, kind = start + 1, kinds[start]
        if kind in _QUESTIONS:
            while kinds[end : end + 1] == [kind]:
                end += 1
            if kind == "m" and kinds[end : end + 1] == ["q"]:
                end += 1
            yield start, end, kind
        start = end


def written(words: Sequence[str]) -> str:
    """Return words as Cantonese is written: with a space between two of Latin letters alone."""
    pieces = [words[0]] if words else []
    for before, word in pairwise(words):
        pieces += (
            [" ", word] if before[-1:].isascii() and word[:1].isascii() and word[:1].isalnum() else [word]
        )
    return "".join(pieces)


def corpus_folder() -> Path:
    """Return where the installed ``pycantonese`` keeps the corpus; the package is not imported."""
    folder = package_folder("pycantonese", "data.format: hkcancor", "the corpus", "pip install pycantonese")
    return folder / "data" / "hkcancor"
