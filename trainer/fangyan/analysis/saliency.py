"""Which words a prediction comes from: integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365).

A sub-word's attribution is what its embedding adds to the predicted label's score (logit) on the way from a
baseline, in which all sub-words but the special ones are the mask token, or padding where there is none. They
add up to the difference that the text makes. By the package captum.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from fangyan.analysis.run_model import RunModel
from fangyan.data.example import Example
from fangyan.data.packing import collate
from fangyan.data.tokenization import TokenizedSequence
from fangyan.device import device
from fangyan.errors import UserError

# Points of the path, by Gauss-Legendre.
STEPS = 64
# Of them at a time.
_BATCH = 16
# Of float32: what scores of embeddings may differ by from those of their sub-words.
_TOLERANCE = 1e-3
# Labels of a text: the time grows with the square of a sentence's tokens.
_MOST_LABELS = 100
# Words in the table, of the largest attributions.
_SHOWN = 5


@dataclass(frozen=True)
class Attribution:
    """What one label comes from.

    Attributes:
        of: the token that has the label; of a text, the text.
        label: that is predicted; of a number, the number.
        score: of the label: a logit.
        baseline: its score of the baseline.
        words: what each word adds, as many as the words.
    """

    of: str
    label: str
    score: float
    baseline: float
    words: list[float]


@dataclass(frozen=True)
class Saliency:
    """What the labels of a text come from.

    Attributes:
        text: as it was given.
        words: of it, with the special sub-words around them.
        attributions: of each label.
    """

    text: str
    words: list[str]
    attributions: list[Attribution]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as what JSON holds."""
        return asdict(self)

    @property
    def notes(self) -> list[str]:
        """Return nothing."""
        return []

    def tables(self) -> list[Table]:
        """Return the words that each label comes from most."""
        found = Table(title=escape(f"Saliency of {self.text}"))
        for head in ("of", "label", "score", "baseline", "from"):
            found.add_column(
                head, justify="right" if head in ("score", "baseline") else "left", overflow="fold"
            )
        for each in self.attributions:
            order = sorted(range(len(self.words)), key=lambda i: -abs(each.words[i]))[:_SHOWN]
            most = "  ".join(f"{self.words[i]} {each.words[i]:+.2f}" for i in order)
            row = (each.of, each.label, f"{each.score:.2f}", f"{each.baseline:.2f}", most)
            found.add_row(*map(escape, row))
        return [found]


def saliency(run: RunModel, text: str, example: Example) -> Saliency:
    """Return which words the labels of a text come from.

    Args:
        run: the model, which labels tokens or texts; it takes batches of one sequence per row afterwards.
        text: as it was given.
        example: of it, as the model reads it, without labels.

    Raises:
        UserError: if captum is missing, the text is empty or too long, or the model does not read its
            sub-words by embeddings alone.
    """
    if importlib.util.find_spec("captum") is None:
        raise UserError(
            "--saliency needs the package captum, which is not installed; run: pip install captum"
        )
    if not text.strip():
        raise UserError("--saliency: the text is empty, expected some words")
    sequences = run.task.tokenize([example], run.tokenizer, run.max_length)
    if len(sequences) != 1:
        raise UserError(
            f"--saliency: the text is longer than {run.max_length:,} sub-words, expected one sentence"
        )
    (sequence,) = sequences
    labels = _labels(run, example)
    if len(labels) > _MOST_LABELS:
        raise UserError(
            f"--saliency: {len(labels)} tokens, expected {_MOST_LABELS} at most: each takes a while"
        )
    path = _Path(run, sequence)
    columns = _columns(run, sequence, example)
    found = []
    for row, (of, name, index) in enumerate(labels):
        place = 0 if run.task.pooling is not None else _places(sequence)[row]
        score, baseline, values = path.attribute(place, index)
        words = [float(values[start:end].sum()) for _, start, end in columns]
        found.append(Attribution(of, name, score, baseline, words))
    return Saliency(text, [word for word, _, _ in columns], found)


def _labels(run: RunModel, example: Example) -> list[tuple[str, str, int]]:
    """Return what each predicted label is of, its name and its place among the head's outputs."""
    predicted = run.task.predicted([example], run.outputs([example]))
    assert predicted is not None
    (labels,) = predicted
    known = run.task.model_kwargs()["label2id"]
    if "tokens" in example.fields:
        pairs = zip(example.fields["tokens"], labels, strict=True)
        return [(token, label, known[label]) for token, label in pairs]
    (label,) = labels
    if isinstance(label, float):
        return [("the text", f"{label:.4g}", 0)]
    names = label if isinstance(label, tuple) else (label,)
    if not names:
        raise UserError("--saliency: the model predicts no class for this text, expected one that has some")
    return [("the text", name, known[name]) for name in names]


def _places(sequence: TokenizedSequence) -> list[int]:
    assert sequence.alignment is not None
    return sequence.alignment.places


def _columns(run: RunModel, sequence: TokenizedSequence, example: Example) -> list[tuple[str, int, int]]:
    """Return the words of a sequence, and which sub-words they are; each special sub-word is one of its own.

    Sub-words between those that have the labels of two tokens go to the token whose label is nearer by the
    task's choice: to the one before, where labels are on first sub-words.
    """
    backend = run.tokenizer.backend
    names = backend.convert_ids_to_tokens(sequence.input_ids)
    if "tokens" not in example.fields:
        return [
            (_shown(run, i, name), k, k + 1)
            for k, (i, name) in enumerate(zip(sequence.input_ids, names, strict=True))
        ]
    places = _places(sequence)
    end = len(names) - len(run.tokenizer.suffix)
    if getattr(run.task, "subword", "first") == "first":  # of taggers
        starts = [*places, end]
    else:
        starts = [min(len(run.tokenizer.prefix), places[0]), *(place + 1 for place in places)]
    around = [(names[k], k, k + 1) for k in range(len(names))]
    words = [
        (token, *bounds) for token, bounds in zip(example.fields["tokens"], pairwise(starts), strict=True)
    ]
    return [*around[: starts[0]], *words, *around[starts[-1] :]]


def _shown(run: RunModel, subword: int, name: str) -> str:
    """Return a sub-word as text where it is such; bytes of a character have but their name."""
    if subword in run.tokenizer.backend.all_special_ids:
        return name
    text = str(run.tokenizer.backend.decode([subword])).strip()
    return text if text and "\ufffd" not in text else name


class _Path:
    """The scores of embeddings between a baseline and a sequence.

    Args:
        run: the model.
        sequence: of one text.
    """

    def __init__(self, run: RunModel, sequence: TokenizedSequence):
        self._run, self._sequence = run, sequence
        if run.model.layout != "unpadded":
            run.model.use_layout("padded")
        self._layer: nn.Module = run.model.base.get_input_embeddings()
        backend = run.tokenizer.backend
        special = set(backend.all_special_ids)
        filler = run.tokenizer.pad_id if run.tokenizer.mask_id is None else run.tokenizer.mask_id
        self._baseline_ids = [i if i in special else filler for i in sequence.input_ids]
        self._embedded, self._baseline = (
            self._embed(ids) for ids in (sequence.input_ids, self._baseline_ids)
        )
        self._check()

    def _embed(self, ids: list[int]) -> Tensor:
        """Return the embeddings of sub-words, (1, T, H)."""
        with torch.no_grad():
            found: Tensor = self._layer(torch.tensor([ids], device=device()))
        return found.float()

    def _check(self) -> None:
        """Refuse a model that reads more of its sub-words than their embeddings."""
        with torch.no_grad():
            plain = self._logits(1, replace(self._sequence, input_ids=self._baseline_ids))
            with self._embedding(self._baseline):
                embedded = self._logits(1, self._sequence)
        if not torch.allclose(plain, embedded, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise self._unfit()

    def _unfit(self) -> UserError:
        return UserError(
            f"--saliency: {type(self._run.model.base).__name__} reads more of its sub-words than their "
            "embeddings, expected a model to which these are all"
        )

    @contextmanager
    def _embedding(self, embeddings: Tensor) -> Iterator[None]:
        """Let the model read embeddings, (N, T, H), whatever sub-words it is given."""

        def replaced(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            if output.shape != embeddings.shape:
                raise self._unfit()
            return embeddings.to(output.dtype)

        handle = self._layer.register_forward_hook(replaced)
        try:
            yield
        finally:
            handle.remove()

    def _logits(self, count: int, sequence: TokenizedSequence) -> Tensor:
        """Return the logits of so many copies of a sequence, (N, T, C), or (N, 1, C) of texts."""
        model = self._run.model
        batch = collate([sequence] * count, self._run.tokenizer.pad_id, model.row_width).to(device())
        return torch.stack(model.split_logits(model.logits(batch), batch))

    def attribute(self, place: int, index: int) -> tuple[float, float, Tensor]:
        """Return an output's score, that of the baseline, and what each sub-word adds, (T,)."""
        from captum.attr import IntegratedGradients

        def score(embeddings: Tensor) -> Tensor:
            with self._embedding(embeddings):
                return self._logits(len(embeddings), self._sequence)[:, place, index]

        with torch.no_grad():
            ends = [float(score(side)) for side in (self._embedded, self._baseline)]
        values = IntegratedGradients(score).attribute(
            self._embedded, self._baseline, n_steps=STEPS, internal_batch_size=_BATCH
        )
        return ends[0], ends[1], values[0].sum(-1).detach().cpu()
