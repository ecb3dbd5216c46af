"""Sequence classification: labels of whole texts and of pairs of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.findings import Finding
from fangyan.data.splits import DataConfig
from fangyan.data.tokenization import IGNORE_INDEX, LabelPlace, TokenizedSequence, Tokenizer, whole_text
from fangyan.errors import UserError
from fangyan.tasks.checks import COMPARED
from fangyan.tasks.class_weights import ClassWeights, weigh
from fangyan.tasks.label_set import config_fields, labels_of
from fangyan.tasks.report import Report
from fangyan.tasks.sequence_classification.checks import cut_message, label_findings
from fangyan.tasks.sequence_classification.labels import (
    KINDS,
    SCORE,
    Kind,
    Wanted,
    classes_of,
    reader,
    recognise,
)
from fangyan.tasks.sequence_classification.metrics import METRICS, label_metrics, label_report
from fangyan.tasks.task import Metrics, Task, TaskConfig

if TYPE_CHECKING:
    from fangyan.data.packing import Batch
    from fangyan.models.loss_head import Kernels
    from fangyan.models.packed import Layout, PackedModel
    from fangyan.tasks.sequence_classification.predictor import TextClassifier

Pooling = Literal["auto"] | LabelPlace


class TextOutput(NamedTuple):
    """The output of one text.

    Attributes:
        example: index of it.
        scores_C: of the head, float32: (C,).
    """

    example: int
    scores_C: NDArray[np.float32]


class SequenceClassificationConfig(TaskConfig):
    """A class, several or a number for a text or a pair, by any model with a head for sequences."""

    name: Literal["sequence_classification"] = "sequence_classification"
    fields: ClassVar[tuple[str, ...]] = ("text", "label")

    kind: Wanted = Field(
        "auto",
        description="single_label: one class for each text. multi_label: a list of classes, maybe empty. "
        "regression: a number. auto: by the labels of train, classes where they are text or integers.",
    )
    labels: list[str] | None = Field(None, description="The classes; by default every one in the data.")
    pooling: Pooling = Field(
        "auto",
        description="Which sub-word stands for a text, first or last, or the mean of all. auto: as the "
        "model's class in transformers has it, so that its export gives the same labels there.",
    )
    class_weights: ClassWeights = Field(
        None,
        description="Factor on the training loss of each class, 1 where none is given: {class: factor}, or "
        "balanced, which is inversely proportional to its frequency in train.",
    )

    @override
    def build(self, splits: Splits, data: DataConfig) -> SequenceClassification:
        """Return the task with the classes of the data, or the recipe's own; see :class:`TaskConfig`."""
        kind = recognise(splits["train"]) if self.kind == "auto" else KINDS[self.kind]
        self._check(kind)
        read = reader(kind)
        found = {name: Counter(classes_of(kind, map(read, examples))) for name, examples in splits.items()}
        classes = [SCORE] if kind == "regression" else self.labels or sorted(set().union(*found.values()))
        if self.labels is not None:
            _check_classes(splits["train"], kind, classes)
        if len(classes) < 2 and kind == "single_label_classification":
            raise UserError(f"data.train: all labels are {classes[0]!r}, expected two classes or more")
        if not classes:
            raise UserError("data.train: no text has a class, expected some")
        if kind == "regression":  # which would not say if one is none
            for examples in splits.values():
                for example in examples:
                    read(example)
        task = SequenceClassification(classes, kind, "pair" in splits["train"][0].fields, self.pooling)
        labels = classes_of(kind, map(read, splits["train"]))
        task.class_weights = weigh(self.class_weights, classes, labels, "the classes")
        return task

    def _check(self, kind: Kind) -> None:
        if kind == "regression":
            for field in ("labels", "class_weights"):
                if getattr(self, field) is not None:
                    raise UserError(f"task.{field}: is for classes, found numbers; expected none")
        if kind == "multi_label_classification" and self.class_weights == "balanced":
            raise UserError(
                "task.class_weights: balanced is for one class per text; expected {class: factor} of several"
            )

    @classmethod
    @override
    def from_export(cls, config: Mapping[str, Any], model_config: Any) -> SequenceClassification:
        """Return the task of an exported model."""
        labels = labels_of(model_config)
        kind, pooling, pairs = model_config.problem_type, config.get("pooling"), config.get("pairs")
        if kind not in METRICS:
            raise ValueError(f"problem_type is {kind!r}, expected one of {', '.join(METRICS)}")
        if pooling not in ("first", "last", "mean") or not isinstance(pairs, bool):
            raise ValueError(
                f"pooling is {pooling!r} and pairs {pairs!r}, expected first, last or mean, and a bool"
            )
        return SequenceClassification(labels, kind, pairs, pooling)


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
        return [TextOutput(sequence.example, scores[i]) for i, sequence in enumerate(batch.sequences)]

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
            found = np.exp(scores - scores.max())
            found /= found.sum()
        else:
            found = 0.5 * (1.0 + np.tanh(scores / 2.0))
        pairs = zip(self.labels, found.tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    def _both(
        self, examples: Sequence[Example], outputs: Sequence[TextOutput]
    ) -> tuple[list[Any], list[Any]]:
        """Return the gold and the predicted label of each text."""
        found = {output.example: self.label(output.scores_C) for output in outputs}
        return [self._read(example) for example in examples], [found[i] for i in range(len(examples))]

    @override
    def metrics(self, examples: Sequence[Example], outputs: Sequence[TextOutput]) -> Metrics:
        """Return all metrics of the kind, in percent."""
        return label_metrics(self.kind, *self._both(examples, outputs))

    @override
    def predictions(self, examples: Sequence[Example], outputs: Sequence[TextOutput]) -> list[Any]:
        """Return the class or the classes of each text; nothing of numbers."""
        return [] if self.kind == "regression" else self._both(examples, outputs)[1]

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

    @override
    def predictor(self, model: PackedModel, tokenizer: Tokenizer, max_length: int) -> TextClassifier:
        """Return the model as a classifier."""
        from fangyan.tasks.evaluation import run_batches
        from fangyan.tasks.sequence_classification.predictor import TextClassifier

        def score(examples: Sequence[Example]) -> list[NDArray[np.float32]]:
            sequences = self.tokenize(examples, tokenizer, max_length)
            outputs: list[TextOutput] = run_batches(self, model, sequences, tokenizer.pad_id)
            return [output.scores_C for output in sorted(outputs, key=lambda output: output.example)]

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


def _check_classes(train: Sequence[Example], kind: Kind, classes: Sequence[str]) -> None:
    """Refuse a label that is not among the recipe's classes."""
    read = reader(kind)
    for example in train:
        for label in classes_of(kind, [read(example)]):
            if label not in classes:
                raise UserError(
                    f"{example.source}: label {label!r} is not among the {len(classes)} classes: "
                    f"{', '.join(classes[:8])}{', …' if len(classes) > 8 else ''}"
                )
