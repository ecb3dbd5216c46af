"""Sequence classification: labels of whole texts and of pairs of them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.findings import Finding
from fangyan.data.tokenization import IGNORE_INDEX, LabelPlace, TokenizedSequence, Tokenizer, whole_text
from fangyan.errors import UserError
from fangyan.tasks.checks import COMPARED
from fangyan.tasks.label_set import config_fields
from fangyan.tasks.probabilities import log_softmax, softmax
from fangyan.tasks.report import Report
from fangyan.tasks.resampling import Resampler
from fangyan.tasks.sequence_classification.checks import cut_message, label_findings
from fangyan.tasks.sequence_classification.labels import (
    Kind,
    classes_of,
    reader,
)
from fangyan.tasks.sequence_classification.metrics import METRICS, label_metrics, label_report
from fangyan.tasks.sequence_classification.outputs import TextOutput
from fangyan.tasks.sequence_classification.resampling import label_resampler
from fangyan.tasks.task import Metrics, Task, Unit

if TYPE_CHECKING:
    from fangyan.data.packing import Batch
    from fangyan.models.loss_head import Kernels
    from fangyan.models.packed import Layout, PackedModel
    from fangyan.tasks.sequence_classification.predictor import TextClassifier

Pooling = Literal["auto"] | LabelPlace


class SequenceClassification(Task):
    """Labels and metrics of texts; see :class:`fangyan.tasks.task.Task`.

    Args:
        labels: the classes, in the order of the head's outputs.
        kind: of the labels.
        has_pairs: whether examples are two texts.
        pooling: what stands for a text; ``auto`` until :meth:`use_model`.
    """

    name: ClassVar[str] = "sequence_classification"
    is_causal: ClassVar[bool] = False
    peft_task_type: ClassVar[str] = "SEQ_CLS"
    pipeline_tag: ClassVar[str] = "text-classification"
    has_new_head: ClassVar[bool] = True
    # It hides labelled sub-words, of which a text has one that stands for it.
    takes_token_masking: ClassVar[bool] = False
    tokenizer_kwargs: ClassVar[Mapping[str, Any]] = {}
    greater_is_better: ClassVar[bool] = True
    metric_unit: ClassVar[str] = "percent"

    def __init__(self, labels: list[str], kind: Kind, has_pairs: bool = False, pooling: Pooling = "auto"):
        self.labels = labels
        self.kind: Kind = kind
        self.has_pairs = has_pairs
        self.has_targets = kind != "single_label_classification"
        self.pooling = None if pooling == "auto" else pooling
        self._is_native = True
        self._keep_hidden = False
        self._index = {label: i for i, label in enumerate(labels)}
        self._read = reader(kind)

    @property
    @override
    def primary_metric(self) -> str:
        """Return the first metric of the kind: macro F1, or Spearman's correlation."""
        return METRICS[self.kind][0]

    @property
    @override
    def metric_names(self) -> Sequence[str]:
        """Return the names of the kind's metrics."""
        return METRICS[self.kind]

    @property
    @override
    def auto_model(self) -> Any:
        """Return ``AutoModelForSequenceClassification``."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    @override
    def model_kwargs(self) -> dict[str, Any]:
        """Return the classes and their kind, as a model's configuration has them."""
        return config_fields(self.labels) | {"problem_type": self.kind}

    @override
    def use_model(self, model: Any, backend: Any) -> None:
        """Choose what stands for a text; tell the model what padding is, before which its end is."""
        from fangyan.models.pooled import native_pooling

        own = native_pooling(model)
        self.pooling = self.pooling or own
        if hasattr(model.config, "classifier_pooling") and self.pooling != "last":
            model.config.classifier_pooling = "mean" if self.pooling == "mean" else "cls"
            own = self.pooling
        self._is_native = self.pooling == own
        config = model.config.get_text_config()
        if config.pad_token_id is None:
            config.pad_token_id = backend.pad_token_id

    @override
    def pack(self, model: Any, layout: Layout, kernels: Kernels = "auto") -> PackedModel:
        """Return a model that classifies whole sequences."""
        from fangyan.models.pooled import PooledModel

        return PooledModel(model, layout, kernels, self.pooling or "first")

    @override
    def inputs(self, example: Example) -> str:
        """Return the text; of a pair, both."""
        return "\t".join(example.fields[name] for name in ("text", "pair") if name in example.fields)

    @override
    def findings(self, splits: Splits) -> Iterable[Finding]:
        """Return what is wrong with the labels; see :mod:`fangyan.tasks.sequence_classification.checks`."""
        yield from label_findings(splits, self._count(splits))

    @override
    def cut_findings(
        self, name: str, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> Iterable[Finding]:
        """Return how many texts are longer than a sequence."""
        cut = []
        for i, example in enumerate(islice(examples, COMPARED)):
            # A sub-word is a byte at least.
            if len(self.inputs(example).encode("utf-8", "surrogatepass")) + 4 > max_length:
                whole = tokenizer.backend(*self._texts(example))["input_ids"]
                if len(whole) > max_length:
                    cut.append(i)
        return cut_message(name, examples, cut, max_length)

    @override
    def label_counts(self, splits: Splits) -> Mapping[str, Mapping[str, int]]:
        """Return how often each class occurs; nothing of numbers."""
        return {} if self.kind == "regression" else self._count(splits)

    def _count(self, splits: Splits) -> dict[str, Counter[str]]:
        return {
            name: Counter(classes_of(self.kind, map(self._read, examples)))
            for name, examples in splits.items()
        }

    @override
    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Return a message on classes that were not learned, and so are scored as errors."""
        found = Counter(classes_of(self.kind, map(self._read, examples)))
        unlearned = sorted(found.keys() - self._index.keys())
        if not unlearned:
            return []
        named = ", ".join(f"{label} ({found[label]:,})" for label in unlearned[:3])
        more = ", …" if len(unlearned) > 3 else ""
        return [f"classes that the model has not learned are scored as errors: {named}{more}"]

    @override
    def tokenize(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> list[TokenizedSequence]:
        """Return one sequence for each text or pair, cut where it is longer; a pair's longer text first."""
        return [self._sequence(example, i, tokenizer, max_length) for i, example in enumerate(examples)]

    def _texts(self, example: Example) -> tuple[str, ...]:
        """Return the text, or the pair; refuse one among the other, such as in what is replayed."""
        if ("pair" in example.fields) != self.has_pairs:
            found, expected = ("one text", "a pair") if self.has_pairs else ("a pair", "one text")
            raise UserError(f"{example.source}: {found}, expected {expected}, as the task has learned")
        return tuple(example.fields[name] for name in ("text", "pair")[: 1 + self.has_pairs])

    def _sequence(
        self, example: Example, index: int, tokenizer: Tokenizer, max_length: int
    ) -> TokenizedSequence:
        backend = tokenizer.backend
        encoded = backend(*self._texts(example), truncation="longest_first", max_length=max_length)
        ids = encoded["input_ids"] or [tokenizer.unknown_id]
        segments = encoded.get("token_type_ids", []) if self.has_pairs else []
        # transformers takes the last that is no padding, which may be the end of a text too.
        last = next((i for i in reversed(range(len(ids))) if ids[i] != tokenizer.pad_id), len(ids) - 1)
        alignment = whole_text(len(ids), self.pooling or "first", last)
        labels = [IGNORE_INDEX] * len(ids)
        targets: list[float] = []
        if "label" in example.fields:
            labels[alignment.places[0]], targets = self._learned(example)
        return TokenizedSequence(ids, labels, index, alignment, segments if any(segments) else [], targets)

    def _learned(self, example: Example) -> tuple[int, list[float]]:
        """Return an example's class, and its numbers where it has such."""
        label = self._read(example)
        if self.kind == "single_label_classification":
            return self._index.get(label, IGNORE_INDEX), []
        if self.kind == "regression":
            return 0, [label]
        return 0, [float(name in label) for name in self.labels]

    @override
    def outputs(self, model: PackedModel, batch: Batch) -> list[TextOutput]:
        """Return the head's outputs for every text; see :class:`TextOutput`."""
        scores = model.logits(batch).float().cpu().numpy()
        hidden = model.head_inputs(batch).float().cpu().numpy() if self._keep_hidden else None
        return [
            TextOutput(sequence.example, scores[i], None if hidden is None else hidden[i])
            for i, sequence in enumerate(batch.sequences)
        ]

    def label(self, scores_C: NDArray[np.float32]) -> Any:
        """Return what the head's outputs for a text say: its class, its classes, or its number."""
        if self.kind == "regression":
            return float(scores_C[0])
        if self.kind == "single_label_classification":
            return self.labels[int(scores_C.argmax())]
        return tuple(label for label, score in zip(self.labels, scores_C, strict=True) if score > 0.0)

    def probabilities(self, scores_C: NDArray[np.float32]) -> dict[str, float]:
        """Return the probability of each class, the most likely first; nothing of a number."""
        if self.kind == "regression":
            return {}
        scores = scores_C.astype(np.float64)
        if self.kind == "single_label_classification":
            found = softmax(scores, self.temperature)
        else:
            found = 0.5 * (1.0 + np.tanh(scores / 2.0))
        pairs = zip(self.labels, found.tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    def _both(
        self, examples: Sequence[Example], outputs: Sequence[TextOutput]
    ) -> tuple[list[Any], list[Any]]:
        """Return the gold and the predicted label of each text."""
        predicted = [label for (label,) in self.predicted(examples, outputs)]
        return [self._read(example) for example in examples], predicted

    @override
    def metrics(self, examples: Sequence[Example], outputs: Sequence[TextOutput]) -> Metrics:
        """Return all metrics of the kind, in percent."""
        return label_metrics(self.kind, *self._both(examples, outputs))

    @override
    def resampler(self, examples: Sequence[Example], outputs: Sequence[TextOutput]) -> Resampler:
        """Return what computes the kind's metrics of resampled texts."""
        return label_resampler(self.kind, *self._both(examples, outputs))

    @override
    def predicted(self, examples: Sequence[Example], outputs: Sequence[TextOutput]) -> list[tuple[Any, ...]]:
        """Return the label of each text: its class, its classes, or its number."""
        found = {output.example: self.label(output.scores_C) for output in outputs}
        return [(found[i],) for i in range(len(examples))]

    @override
    def gold(self, examples: Sequence[Example]) -> list[tuple[Any, ...]]:
        """Return the label of each text."""
        return [(self._read(example),) for example in examples]

    @override
    def class_scores(
        self, examples: Sequence[Example], outputs: Sequence[TextOutput]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Return the scores of each text, where it has one class."""
        if self.kind != "single_label_classification":
            return None
        in_order = sorted(outputs, key=lambda output: output.example)
        scores_NC = np.stack([output.scores_C for output in in_order])
        gold = [self._index.get(self._read(example), IGNORE_INDEX) for example in examples]
        return log_softmax(scores_NC), np.array(gold, dtype=np.int64)

    @override
    def floor(self, splits: Splits) -> dict[str, Metrics]:
        """Return the metrics of the most frequent class; of several classes or numbers there is none."""
        if self.kind != "single_label_classification":
            return {}
        ((most, _),) = Counter(map(self._read, splits["train"])).most_common(1)
        return {
            name: label_metrics(
                self.kind, [self._read(example) for example in examples], [most] * len(examples)
            )
            for name, examples in splits.items()
            if name != "train"
        }

    @override
    def report(self, examples: Sequence[Example], outputs: Sequence[TextOutput]) -> Report | None:
        """Return scores of each class; None of numbers."""
        return label_report(self.kind, *self._both(examples, outputs))

    @property
    @override
    def unit_labels(self) -> Sequence[str]:
        """Return the classes, where a text has one."""
        return self.labels if self.kind == "single_label_classification" else ()

    @override
    def units(self, example: Example) -> list[Unit]:
        """Return the text, or the pair."""
        fields = dict(zip(("text", "pair"), self._texts(example), strict=False))
        return [Unit(fields, self._read(example))]

    @override
    def unit_output(self, example: int, log_probabilities_UC: NDArray[np.float32]) -> TextOutput:
        return TextOutput(example, log_probabilities_UC[0])

    @override
    def predictor(self, model: PackedModel, tokenizer: Tokenizer, max_length: int) -> TextClassifier:
        """Return the model as a classifier."""
        from fangyan.tasks.evaluation import run_batches
        from fangyan.tasks.sequence_classification.predictor import TextClassifier

        def score(examples: Sequence[Example], hidden: bool) -> list[TextOutput]:
            keeping = copy.copy(self)
            keeping._keep_hidden = hidden
            sequences = self.tokenize(examples, tokenizer, max_length)
            outputs: list[TextOutput] = run_batches(keeping, model, sequences, tokenizer.pad_id)
            return sorted(outputs, key=lambda output: output.example)

        return TextClassifier(self, score)

    @property
    @override
    def usage_note(self) -> str:
        """Return how the model pools, where its class in transformers does it in another way."""
        if self._is_native:
            return ""
        return (
            f"Its head reads the {self.pooling} of the last hidden states of a text's sub-words, which plain "
            "transformers does not do for this class: its logits there are others. fangyan predict reads it "
            "right."
        )

    @override
    def export_config(self) -> dict[str, Any]:
        """Return what the model's own configuration, which has the classes, does not say."""
        return {"pooling": self.pooling, "pairs": self.has_pairs}
