"""What a model got wrong, in context: the rows of a report's error browser, and of where runs disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from fangyan.data.example import DATASET, Example
from fangyan.tasks.extractive_qa.metrics import is_english, scores
from fangyan.terminal import printable

# Rows of a split: the most confused; a page of 2,000 is 1 MB.
MOST = 2000
# Tokens on either side of an error, and characters of a text.
_TOKENS, _CHARACTERS = 12, 400


@dataclass(frozen=True)
class Row:
    """One error, or one place where runs disagree.

    Attributes:
        split: of its example.
        source: file and line of this.
        data_set: or the file, where the run has one data set.
        length: of the example, in tokens or characters.
        place: of the row in the order of the file.
        above: a question, or the first text of a pair.
        left: what is before the error.
        text: what is labelled.
        right: what follows it.
        gold: labels that are right.
        predicted: labels of each run.
        right_of: whether each run is right.
        probability: of the first label that the run predicts.
        times: how often what is right was taken for what was predicted.
    """

    split: str
    source: str
    data_set: str
    length: int
    place: int
    above: str
    left: str
    text: str
    right: str
    gold: list[str]
    predicted: list[list[str]]
    right_of: list[bool]
    probability: float | None
    times: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return it as the page has it, without control characters."""
        return {
            name: _shown(value) for name, value in asdict(self).items() if value is not None and value != ""
        }


@dataclass(frozen=True)
class Said:
    """What runs said of one example.

    Attributes:
        gold: a label for each token, or of a text; or answers, any of which is right.
        predicted: of each run.
        probability: of each label of the only run, where it is known.
    """

    gold: Sequence[Any]
    predicted: Sequence[Sequence[Any]]
    probability: Sequence[float] | None = None


def rows(split: str, examples: Sequence[Example], said: Sequence[Said], spaced: bool) -> list[Row]:
    """Return the errors of one run, or where several disagree, the most frequent confusion first.

    Args:
        split: of which the examples are.
        examples: in order.
        said: of each.
        spaced: whether white space is between tokens that do not say.
    """
    found: list[Row] = []
    for example, one in zip(examples, said, strict=True):
        make = _of_tokens if "tokens" in example.fields else _of_answer if _is_question(example) else _of_text
        found += make(split, len(found), example, one, spaced)
    if found and isinstance(said[0].gold[0] if said[0].gold else None, float):
        return sorted(found, key=lambda row: -abs(float(row.gold[0]) - float(row.predicted[0][0])))
    counts = Counter(map(_pair, found))
    counted = [Row(**vars(row) | {"times": counts[_pair(row)]}) for row in found]
    return sorted(counted, key=lambda row: (-row.times, _pair(row), row.place))


def _pair(row: Row) -> tuple[str, ...]:
    """Return what was taken for what: of a span's tags, the first."""
    return (*row.gold[:1], *("".join(labels[:1]) for labels in row.predicted))


def _is_question(example: Example) -> bool:
    return "question" in example.fields


def _of_tokens(split: str, place: int, example: Example, said: Said, spaced: bool) -> Iterator[Row]:
    """Yield a row for each run of tokens with a wrong tag; tags of no span stand alone."""
    tokens = example.fields["tokens"]
    spaces = example.fields.get("spaces", (spaced,) * len(tokens))
    pieces = [token + " " * space for token, space in zip(tokens, spaces, strict=True)]
    wrong = _differ(said)
    for is_wrong, group in groupby(range(len(tokens)), key=lambda i: wrong[i]):
        if not is_wrong:
            continue
        for start, end in _cut(list(group), said):
            gold = list(map(str, said.gold[start:end]))
            predicted = [list(map(str, each[start:end])) for each in said.predicted]
            yield Row(
                *(split, example.source, data_set(example), len(tokens), place, ""),
                ("… " if start > _TOKENS else "") + "".join(pieces[max(start - _TOKENS, 0) : start]),
                "".join(pieces[start:end]).rstrip(),
                (" " if spaces[end - 1] else "")
                + "".join(pieces[end : end + _TOKENS])
                + ("…" if end + _TOKENS < len(tokens) else ""),
                *(gold, predicted, [each == gold for each in predicted]),
                None if said.probability is None else said.probability[start],
            )
            place += 1


def _differ(said: Said) -> list[bool]:
    """Return for each token whether the run is wrong, or whether several runs disagree."""
    if len(said.predicted) == 1:
        return [left != right for left, right in zip(said.gold, said.predicted[0], strict=True)]
    return [len(set(labels)) > 1 for labels in zip(*said.predicted, strict=True)]


def _cut(indices: Sequence[int], said: Said) -> Iterator[tuple[int, int]]:
    """Yield the bounds of what tokens with wrong tags are shown together: those that a span goes on over."""
    start = indices[0]
    for i in indices[1:]:
        labels = [said.gold[i], *(each[i] for each in said.predicted)]
        if not any(str(label).startswith("I-") for label in labels):
            yield start, i
            start = i
    yield start, indices[-1] + 1


def _of_text(split: str, place: int, example: Example, said: Said, _spaced: bool) -> Iterator[Row]:
    """Yield a row if the label of a text is wrong; of numbers always."""
    gold, predicted = said.gold[0], [each[0] for each in said.predicted]
    if len(predicted) == 1 and predicted[0] == gold and not isinstance(gold, float):
        return
    if len(predicted) > 1 and all(each == predicted[0] for each in predicted):
        return
    fields = example.fields
    above, text = (fields["text"], fields["pair"]) if "pair" in fields else ("", fields["text"])
    yield Row(
        *(split, example.source, data_set(example), len(above) + len(text), place),
        *(_begin(above), "", _begin(text), ""),
        *(_labels(gold), [_labels(each) for each in predicted]),
        [each == gold for each in predicted],
        None if said.probability is None else said.probability[0],
    )


def _of_answer(split: str, place: int, example: Example, said: Said, _spaced: bool) -> Iterator[Row]:
    """Yield a row if an answer is wrong, with the part of the context that the right one is in."""
    fields, english = example.fields, is_english(example)
    predicted = [str(each[0]) for each in said.predicted]
    right = [scores(each, [str(answer) for answer in said.gold], english)[1] == 1.0 for each in predicted]
    if all(right) or (len(predicted) > 1 and len(set(predicted)) == 1):
        return
    context, answers = fields["context"], fields["answers"]
    start = end = 0
    if answers:
        start, end = answers[0]["start"], answers[0]["start"] + len(answers[0]["text"])
    half = _CHARACTERS // 2
    yield Row(
        *(split, example.source, data_set(example), len(context), place, _begin(fields["question"])),
        ("… " if start > half else "") + context[max(start - half, 0) : start],
        context[start:end],
        context[end : end + half] + (" …" if end + half < len(context) else ""),
        *(list(map(str, said.gold)) or ["no answer"], [[each or "no answer"] for each in predicted], right),
        None,
    )


def data_set(example: Example) -> str:
    """Return what an example is of: its data set, or its file."""
    return str(example.fields.get(DATASET, example.source.rpartition(":")[0] or example.source))


def _labels(label: Any) -> list[str]:
    """Return a text's label as a row has it: its class, its classes, or its number."""
    if isinstance(label, list | tuple):
        return list(map(str, label)) or ["none"]
    return [f"{label:.3f}" if isinstance(label, float) else str(label)]


def _begin(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isprintable() else printable(value)
    return [_shown(each) for each in value] if isinstance(value, list) else value
