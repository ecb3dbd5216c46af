"""What formats of named values share: JSON lines, tables with a header, data sets of ``datasets``."""

from __future__ import annotations

import json
import math
import re
from abc import ABC
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field
from typing_extensions import override

from fangyan.data.example import Annotation, Example
from fangyan.data.formats.messages import Message, check_prompt, conversation, instruction, translation
from fangyan.data.formats.messages import text as text_of
from fangyan.data.formats.questions import question
from fangyan.data.splits import TaggedDataConfig
from fangyan.errors import UserError

Name = Literal[
    "tokens",
    "tags",
    "text",
    "spans",
    "pair",
    "label",
    "messages",
    "instruction",
    "input",
    "output",
    "source",
    "target",
    "question",
    "context",
    "answers",
]
# What a model predicts.
PREDICTED: tuple[Name, ...] = ("tags", "spans", "label", "answers")
# What examples of text hold, without and with labels.
_TEXTS: tuple[set[str], ...] = ({"text"}, {"text", "label"}, {"text", "pair", "label"})
# What conversations are made of.
_TALKS: tuple[set[str], ...] = (
    {"messages"},
    {"instruction", "output"},
    {"instruction", "input", "output"},
    {"source", "target"},
)
_QUESTIONS: set[str] = {"question", "context", "answers"}


class RecordsConfig(TaggedDataConfig, ABC):
    """A format whose examples are named values.

    Tokens and their tags; or a text with labelled spans of its characters, which become IOB2 tags; or a text,
    alone or with a label, or two texts with one; or a conversation; or a question, its context and answers.
    """

    fields: ClassVar[tuple[str, ...]] = (
        *("tokens", "tags", "text", "pair", "label", "messages"),
        *("question", "context", "answers"),
    )
    chooser: ClassVar[str] = "columns"

    columns: dict[Name, str] = Field(
        {},
        description="What the file has under which names: {tokens: words, tags: ner_tags}, {text: sentence, "
        "spans: entities}, {text: sentence}, {text: tweet, label: dialect}, {text: premise, pair: "
        "hypothesis, label: gold} or {question: question, context: passage, answers: answers}. By default "
        "what the task needs, under our names.",
    )

    prompt: Annotated[str, pydantic.AfterValidator(check_prompt)] | None = Field(
        None,
        description="Of source and target: the question that a sentence becomes, such as 'Say it in "
        "Cantonese: "
        "{source}'. By default the sentence alone.",
    )

    @pydantic.model_validator(mode="after")
    def _of_one_kind(self) -> RecordsConfig:
        names = set(self.columns)
        if (
            names not in (*_TEXTS, *_TALKS, _QUESTIONS)
            and not names <= {"tokens", "tags"}
            and not names <= {"text", "spans"}
        ):
            raise ValueError(
                f"columns has {', '.join(self.columns)}; expected tokens and tags, text and spans, text, "
                "text and label, text, pair and label, messages, instruction, input and output, source and "
                "target, or question, context and answers"
            )
        if names in (*_TEXTS, *_TALKS, _QUESTIONS) and self.tokens != "words":
            raise ValueError("tokens is characters, but columns names a text that has no tags")
        if self.prompt is not None and names != {"source", "target"}:
            raise ValueError("prompt is given, but columns has no source and target; expected none")
        return self

    @property
    @override
    def provided(self) -> tuple[str, ...]:
        """Return what the recipe's columns name, or ``tokens`` and ``tags``."""
        if set(self.columns) in _TALKS:
            return ("messages",)
        return tuple(self.columns) if set(self.columns) in (*_TEXTS, _QUESTIONS) else ("tokens", "tags")

    @override
    def choice(self, needed: Sequence[str]) -> str:
        """Return columns of the fields that are needed."""
        return f"the file's columns of those, such as {{{', '.join(f'{name}: NAME' for name in needed)}}}"

    @classmethod
    @override
    def defaults(cls, needed: Collection[str]) -> dict[str, Any]:
        """Return columns of the names that a task of texts needs."""
        known = set(needed) in (*_TEXTS, {"messages"}, _QUESTIONS)
        return {"columns": {name: name for name in needed}} if known else {}

    def column(self, name: str) -> str:
        """Return a value's name in the file."""
        return next((key for own, key in self.columns.items() if own == name), name)

    def example(self, record: Mapping[str, Any], source: str, tagged: bool = True) -> Example | None:
        """Return a record's example; None for one without text or tokens.

        Args:
            record: the values of the file.
            source: ``file:line``.
            tagged: whether its tags, label or answers are read too.

        Raises:
            UserError: naming the source and the value that does not fit.
        """
        if set(self.columns) in _TEXTS:
            return self._of_text(record, source, tagged)
        if set(self.columns) in _TALKS:
            return self._of_talk(record, source)
        if set(self.columns) == _QUESTIONS:
            columns: dict[str, str] = {str(name): key for name, key in self.columns.items()}
            values = question(record, columns, source, tagged)
            # Questions on one context stay together.
            return Example(values, source, values["context"])
        if self.has_spans(record):
            return self._of_spans(record, source, tagged)
        tokens = strings(record, self.column("tokens"), source)
        fields = {"tokens": tokens}
        if tagged:
            fields["tags"] = strings(record, self.column("tags"), source)
            if len(tokens) != len(fields["tags"]):
                raise UserError(
                    f"{source}: {len(tokens)} tokens but {len(fields['tags'])} tags, expected as many"
                )
        return Example(fields, source, " ".join(tokens)) if tokens else None

    def _of_text(self, record: Mapping[str, Any], source: str, tagged: bool) -> Example | None:
        values: dict[str, Any] = {
            str(name): label(record, key, source) if name == "label" else text_of(record, key, source)
            for name, key in self.columns.items()
            if tagged or name != "label"
        }
        return Example(values, source, values["text"]) if values["text"].strip() else None

    def _of_talk(self, record: Mapping[str, Any], source: str) -> Example | None:
        columns: dict[str, str] = {str(name): key for name, key in self.columns.items()}
        if "messages" in columns:
            talk: tuple[Message, ...] | None = conversation(record, columns["messages"], source)
        elif "target" in columns:
            talk = translation(record, columns, self.prompt or "{source}", source)
        else:
            talk = instruction(record, columns, source)
        if talk is None:
            return None
        # Copies of a question stay together, whatever their answers.
        question = next((message["content"] for message in talk if message["role"] == "user"), "")
        return Example({"messages": talk}, source, question)

    def has_spans(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record is a text with spans."""
        if self.columns:
            return not {"text", "spans"}.isdisjoint(self.columns)
        return "tokens" not in record and "text" in record

    def _of_spans(self, record: Mapping[str, Any], source: str, tagged: bool) -> Example | None:
        text = text_of(record, self.column("text"), source)
        bounds = self.bounds(text)
        if not bounds:
            return None
        tokens = tuple(text[start:end] for start, end in bounds)
        followed = [start for start, _ in bounds[1:]] + [len(text) + 1]
        fields: dict[str, Any] = {
            "tokens": tokens,
            "spaces": tuple(start > end for (_, end), start in zip(bounds, followed, strict=True)),
        }
        if tagged:
            fields["tags"] = _span_tags(record.get(self.column("spans")), text, bounds, source, self.tokens)
        return Example(fields, source, text)

    def bounds(self, text: str) -> list[tuple[int, int]]:
        """Return where the tokens of a text begin and end: words between white space, or characters."""
        pattern = r"\S" if self.tokens == "characters" else r"\S+"
        return [match.span() for match in re.finditer(pattern, text)]

    @property
    def unlabelled_columns(self) -> dict[str, str]:
        """Return what of an example is read, and no label, with its name in the file."""
        columns: dict[str, str] = {str(own): key for own, key in self.columns.items()}
        if {"text", "spans"}.isdisjoint(columns):
            return {"tokens": columns.get("tokens", "tokens")}
        return {own: columns.get(own, own) for own in ("text", "pair") if own in columns or own == "text"}

    def without_labels(self, example: Example) -> dict[str, Any]:
        """Return an example as a record of its own, without labels."""
        record: dict[str, Any] = {}
        for own, key in self.unlabelled_columns.items():
            value = example.fields.get(own)
            if value is None and own == "text":  # tokens, whose tags the file has as spans of a text
                value = ("" if self.tokens == "characters" else " ").join(example.fields["tokens"])
            record[key] = list(value) if isinstance(value, tuple) else value
        return record

    def predicted(
        self, record: Mapping[str, Any], annotation: Annotation, example: Example | None
    ) -> dict[str, Any]:
        """Return what an annotation puts under which names of a record: what JSON has.

        Raises:
            UserError: if the record has a text for spans, and the model's tags are of none.
        """
        if annotation.values:
            return {self.column(name): value for name, value in annotation.values.items()}
        if self.has_spans(record):
            if annotation.labels is None:
                place = "" if example is None else f"{example.source}: "
                raise UserError(
                    f"{place}the model's tags are of no spans, expected {self.column('tokens')} in place of "
                    f"{self.column('text')}"
                )
            text = record[self.column("text")]
            values: dict[str, Any] = {self.column("spans"): self.spans_of(text, annotation.labels)}
        else:
            values = {self.column("tags"): list(annotation.tags)}
        if annotation.probabilities is not None:
            values["probabilities"] = [
                [[tag, round(probability, 4)] for tag, probability in token]
                for token in annotation.probabilities
            ]
        return values

    def spans_of(self, text: str, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return IOB2 tags as labelled spans of a text."""
        spans: list[dict[str, Any]] = []
        inside = None
        for (start, end), tag in zip(self.bounds(text), labels, strict=True):
            prefix, _, label = tag.partition("-")
            if prefix == "I" and label == inside:
                spans[-1]["end"] = end
            elif tag != "O":
                spans.append({"start": start, "end": end, "label": label})
            inside = None if tag == "O" else label
        return spans


def named_values(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a record that are one: text, numbers, true and false."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in record.items()
        if isinstance(value, str | int | float)
    }


def strings(record: Mapping[str, Any], key: str, source: str) -> tuple[str, ...]:
    """Return a value that is a list of strings, none empty.

    Raises:
        UserError: if it is anything else.
    """
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(part, str) and part for part in value):
        raise UserError(f"{source}: {key} is {str(value)[:60]!r}, expected a list of non-empty strings")
    return tuple(value)


def label(record: Mapping[str, Any], key: str, source: str) -> str | float | tuple[str, ...]:
    """Return a text's label: a class, a number, or several classes.

    Raises:
        UserError: if it is anything else.
    """
    value = record.get(key)
    if isinstance(value, list) and all(isinstance(part, str) and part for part in value):
        return tuple(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, bool | int):  # a class by its number, or true and false
        return str(value).lower()
    if isinstance(value, str) and value.strip():
        return value
    raise UserError(
        f"{source}: {key} is {str(value)[:60]!r}, expected a class (text or an integer), a number, or a list "
        "of classes"
    )


def _span_tags(
    spans: Any, text: str, bounds: list[tuple[int, int]], source: str, unit: str
) -> tuple[str, ...]:
    """Return labelled spans of characters as IOB2 tags."""
    tags = ["O"] * len(bounds)
    starts = {start: i for i, (start, _) in enumerate(bounds)}
    ends = {end: i for i, (_, end) in enumerate(bounds)}
    for start, end, label in sorted(_parse_spans(spans, len(text), source)):
        found = f"span {start}-{end} ({text[start:end][:40]!r})"
        if start not in starts or end not in ends:
            hint = "; data.tokens: characters cuts anywhere" if unit == "words" else ""
            raise UserError(f"{source}: {found} cuts a token, expected it to begin and end with one{hint}")
        first, last = starts[start], ends[end]
        if any(tag != "O" for tag in tags[first : last + 1]):
            raise UserError(f"{source}: {found} overlaps another, expected spans apart")
        tags[first : last + 1] = [f"B-{label}"] + [f"I-{label}"] * (last - first)
    return tuple(tags)


def _parse_spans(spans: Any, length: int, source: str) -> Iterable[tuple[int, int, str]]:
    if not isinstance(spans, list):
        raise UserError(f"{source}: spans is {str(spans)[:60]!r}, expected a list of start, end and label")
    for span in spans:
        fields: Any = span if isinstance(span, dict) else {}
        start, end, label = fields.get("start"), fields.get("end"), fields.get("label")
        fits = isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= length
        if not fits or not isinstance(label, str) or not label:
            raise UserError(
                f"{source}: span {str(span)[:60]}, expected start, end and label, counted in the {length} "
                "characters of the text"
            )
        yield start, end, label
