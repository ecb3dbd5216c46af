"""What a file of the user's is: format, columns, tag scheme and task, guessed, and verified by reading it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fangyan.data.compression import suffix
from fangyan.data.example import Example
from fangyan.data.formats import parse_data
from fangyan.data.formats.for_task import filled
from fangyan.errors import UserError
from fangyan.first_run.columns import conll_readings, conllu_readings
from fangyan.first_run.named import chat_readings, csv_readings, json_readings, parquet_readings
from fangyan.first_run.reading import Head, Reading, quoted, read_head
from fangyan.first_run.texts import text_readings
from fangyan.tasks import TASKS
from fangyan.tasks.token_classification.recognition import TagPairs, recognise

# Examples that a guess is verified by: above it, the sizes of data are the same to a recipe.
MOST_EXAMPLES = 3000
# Share of the tokens that are one character each where a file is cut into characters.
_CHARACTERS = 0.95

_SNIFFERS: Sequence[Callable[[Head], list[Reading]]] = (
    conllu_readings,
    json_readings,
    chat_readings,
    conll_readings,
    csv_readings,
    text_readings,
)
# Of an example, what is in the user's language.
_TEXTS = ("tokens", "text", "question", "context", "messages")


class Answer(NamedTuple):
    """What a user may answer to the question of a guess.

    Attributes:
        text: the answer.
        guess: what the file then is.
    """

    text: str
    guess: Guess


@dataclass(frozen=True)
class Guess:
    """What a file seems to be.

    Attributes:
        task: of the recipe.
        format: fields of the recipe's ``data`` that say the format, such as
            ``{"format": "conllu", "column": "upos"}``.
        scheme: of the tags: iob2, iob1, iobes, bilou, bmes, io, segmentation or plain; None without tags.
        examples: that were read to verify it; all that the file has, where ``is_whole``.
        sureness: from 0 to 1.
        reasons: for it, each a clause.
        question: what to ask where there is more than one reading; None where there is one.
        answers: to the question; the first means this guess.
        options: other fields of the recipe's ``task``.
        is_whole: whether the file has no more examples.
        is_han: whether most of its letters are Chinese characters.
    """

    task: str
    format: dict[str, Any]
    scheme: str | None
    examples: int
    sureness: float
    reasons: list[str]
    question: str | None
    answers: tuple[Answer, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    is_whole: bool = True
    is_han: bool = False

    def sentence(self) -> str:
        """Return how sure this is, and why."""
        percent = round(100 * self.sureness)
        words = "almost sure" if percent >= 95 else "fairly sure" if percent >= 75 else "not sure"
        return f"{words} ({percent}%): {'; '.join(self.reasons)}"


def guess(path: Path) -> Guess:
    """Return what a file is.

    Raises:
        UserError: if there is no such file, or it is none that a format reads; the sentence is then that of
            the format that it is closest to.
    """
    if suffix(path) == ".parquet":
        readings = parquet_readings(path)
    else:  # the first that knows the file: another would take a damaged line of it for something of its own
        head = read_head(path)
        readings = next(readings for sniff in _SNIFFERS if (readings := sniff(head)))
    found: list[tuple[Reading, Guess]] = []
    mistake: UserError | None = None
    for reading in sorted(readings, key=lambda reading: -reading.sureness):
        try:
            found.append((reading, _verified(path, reading)))
        except UserError as error:
            mistake = mistake or error
    if not found:
        assert mistake is not None
        raise mistake
    first, best = found[0]
    if mistake is not None and readings.index(first) > 0:
        best = replace(best, sureness=0.5 * best.sureness, reasons=[*best.reasons, str(mistake)])
    rivals = [(reading, other) for reading, other in found if reading.question == first.question]
    if not first.question or len(rivals) == 1:
        return best
    answers = tuple(Answer(reading.answer, other) for reading, other in rivals)
    return replace(best, question=first.question, answers=answers)


def _verified(path: Path, reading: Reading) -> Guess:
    """Return a reading as a guess, once the file has been read so."""
    needed = TASKS.members[reading.task].fields  # type: ignore[attr-defined]
    data = parse_data(filled({**reading.format, "train": str(path)}, needed), str(path))
    examples = list(islice(data.read(path), MOST_EXAMPLES + 1))
    is_whole = len(examples) <= MOST_EXAMPLES
    examples = examples[:MOST_EXAMPLES]
    if not examples:
        raise UserError(f"{path}: no example in it, expected some")
    count = f"{len(examples):,}" if is_whole else f"the first {len(examples):,}"
    reasons = [*reading.reasons, f"{count} examples read so"]
    plain = Guess(
        *(reading.task, reading.format, None, len(examples), reading.sureness, reasons, None),
        options=reading.options,
        is_whole=is_whole,
        is_han=_is_han(examples),
    )
    return _with_scheme(plain, examples) if "tags" in examples[0].fields else plain


def _with_scheme(guess: Guess, examples: Sequence[Example]) -> Guess:
    """Return a guess with what its tags are, and whether its tokens are characters."""
    tokens = [token for example in examples for token in example.fields["tokens"]]
    reasons = list(guess.reasons)
    format = guess.format
    if sum(len(token) == 1 for token in tokens) >= _CHARACTERS * len(tokens):
        format = {**format, "tokens": "characters"}
        reasons.append("tokens are single characters")
    try:
        scheme, notation, message = recognise(TagPairs.of(examples), "auto")
    except UserError as error:
        reasons.append(str(error))
        return replace(guess, format=format, reasons=reasons, sureness=0.7 * guess.sureness)
    kind = "segmentation" if scheme == "segmentation" else notation.style
    tags = [tag for example in examples for tag in example.fields["tags"]]
    means = {"segmentation": "words", "iob2": "entities", "plain": "labels"}[scheme]
    reasons.append(f"{len(set(tags))} tags ({quoted(tags)}) are {means}: {notation.name}")
    known = replace(guess, format=format, scheme=kind, reasons=reasons)
    if not message or notation.style not in ("io", "plain"):
        return known
    other = replace(known, scheme="io" if kind == "plain" else "plain")
    both = sorted((known, other), key=lambda each: each.scheme != "io")
    answers = {
        each.scheme: Answer(
            "types of entities" if each.scheme == "io" else "plain labels",
            replace(each, options={**each.options, "scheme": each.scheme}),
        )
        for each in both
    }
    question = "Do tags other than O name entities, whose tokens belong together, or are they plain labels?"
    first, second = answers[known.scheme], answers[other.scheme]
    return replace(known, sureness=0.8 * known.sureness, question=question, answers=(first, second))


def _is_han(examples: Sequence[Example]) -> bool:
    """Return whether most letters of the first examples are Chinese characters."""
    letters = [
        character
        for example in examples[:100]
        for name in _TEXTS
        for character in _text(example.fields.get(name, ""))
        if character.isalpha()
    ]
    return sum("\u3400" <= letter <= "\u9fff" for letter in letters) > 0.5 * len(letters)


def _text(value: Any) -> str:
    """Return what stands in a field: a text, tokens or messages."""
    if isinstance(value, str):
        return value
    return "".join(part["content"] if isinstance(part, dict) else part for part in value)
