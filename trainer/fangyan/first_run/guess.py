"""What a file of the user's is: format, columns, tag scheme and task, guessed, and verified by reading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fangyan.data.compression import suffix
from fangyan.data.example import Example
from fangyan.data.formats import parse_data
from fangyan.data.formats.for_task import filled
from fangyan.data.splits import DataConfig
from fangyan.errors import UserError
from fangyan.first_run.columns import conll_readings, conllu_readings
from fangyan.first_run.named import chat_readings, csv_readings, datasets_readings, json_readings
from fangyan.first_run.reading import Head, Reading, read_head
from fangyan.first_run.texts import text_readings
from fangyan.tasks import TASKS
from fangyan.tasks.task import TaskConfig
from fangyan.tasks.token_classification.recognition import TagPairs, recognise

# Examples that a guess is verified by: above it, the sizes of data are the same to a recipe.
MOST_EXAMPLES = 3000
# Share of the tokens that are one character each where a file is cut into characters.
_CHARACTERS = 0.95

# Tokens of a sample, or characters to write on from; and characters of other texts.
_SAMPLE, _SHOWN = 8, 60
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
        sample: of its texts, to predict.
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
    sample: str = ""

    @property
    def surely(self) -> str:
        """Return how sure this is, in words and percent."""
        percent = round(100 * self.sureness)
        return f"{'almost' if percent >= 95 else 'fairly' if percent >= 75 else 'not'} sure ({percent}%)"


def guess(path: Path) -> Guess:
    """Return what a file is.

    Raises:
        UserError: if there is no such file, or it is none that a format reads; the sentence is then that of
            the format that it is closest to.
    """
    readings = _readings(path)
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


def _readings(path: Path) -> list[Reading]:
    """Return the ways in which a file may be read.

    They are those of the first kind of file that it looks like: another would take a damaged line of it for
    something of its own.
    """
    if suffix(path) == ".parquet" or (path / "dataset_info.json").is_file():
        return datasets_readings(path)
    head = read_head(path)
    rows: list[Callable[[Head], list[Reading]]] = [conll_readings, csv_readings]
    if suffix(path) == ".csv":  # a quoted cell may have blank lines
        rows.reverse()
    kinds = (conllu_readings, json_readings, chat_readings, *rows, text_readings)
    return next(readings for kind in kinds if (readings := kind(head)))


def data_of(path: Path, task: str, format: Mapping[str, Any]) -> DataConfig:
    """Return the section ``data`` of a recipe for one file.

    Args:
        path: of the file.
        task: of the recipe.
        format: the fields that say the format.
    """
    member = TASKS.members[task]
    assert issubclass(member, TaskConfig)
    return parse_data(filled({**format, "train": str(path)}, member.fields), str(path))


def _verified(path: Path, reading: Reading) -> Guess:
    """Return a reading as a guess, once the file has been read so."""
    data = data_of(path, reading.task, reading.format)
    examples = list(islice(data.read(path), MOST_EXAMPLES + 1))
    is_whole = len(examples) <= MOST_EXAMPLES
    examples = examples[:MOST_EXAMPLES]
    if not examples:
        raise UserError(f"{path}: no example in it, expected some")
    count = f"{len(examples):,} example{'s' * (len(examples) > 1)}"
    reasons = [*reading.reasons, f"{'' if is_whole else 'the first '}{count} can be read so"]
    plain = Guess(
        *(reading.task, reading.format, None, len(examples), reading.sureness, reasons, None),
        options=reading.options,
        is_whole=is_whole,
        is_han=_is_han(examples),
        sample=_sample(examples[0].fields, reading.task),
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
    kinds = len({tag for example in examples for tag in example.fields["tags"]})
    means = {"segmentation": "words, in ", "iob2": "entities, in ", "plain": ""}[scheme]
    reasons.append(f"the {kinds} tags are {means}{notation.name}")
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


def _sample(fields: Mapping[str, Any], task: str) -> str:
    """Return a text as ``fangyan predict`` takes it."""
    if "tokens" in fields:
        between = "" if all(len(token) == 1 for token in fields["tokens"]) else " "
        return between.join(fields["tokens"][:_SAMPLE])
    if "messages" in fields:
        return _short(next((each["content"] for each in fields["messages"] if each["role"] == "user"), ""))
    if "question" in fields:
        return f"{_short(fields['question'])}\t{_short(fields['context'])}"
    if task == "masked_lm":
        return f"{fields['text'][:_SAMPLE]}[MASK]"
    if task == "causal_lm":
        return str(fields["text"][:_SAMPLE])
    pair = f"\t{_short(fields['pair'])}" if "pair" in fields else ""
    return _short(fields["text"]) + pair


def _short(text: str) -> str:
    """Return the beginning of a text, on one line."""
    return " ".join(text.split())[:_SHOWN]


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
