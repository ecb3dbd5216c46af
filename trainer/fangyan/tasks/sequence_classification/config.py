"""The recipe's section of sequence classification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.splits import DataConfig
from fangyan.errors import UserError
from fangyan.tasks.class_weights import ClassWeights, weigh
from fangyan.tasks.label_set import labels_of
from fangyan.tasks.sequence_classification.labels import (
    KINDS,
    SCORE,
    Kind,
    Wanted,
    check_classes,
    classes_of,
    reader,
    recognise,
)
from fangyan.tasks.sequence_classification.metrics import METRICS
from fangyan.tasks.sequence_classification.task import Pooling, SequenceClassification
from fangyan.tasks.task import TaskConfig


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
        kind = self._kind(splits["train"])
        self._check(kind)
        read = reader(kind)
        found = {name: Counter(classes_of(kind, map(read, examples))) for name, examples in splits.items()}
        classes = [SCORE] if kind == "regression" else self.labels or sorted(set().union(*found.values()))
        if self.labels is not None:
            check_classes(splits["train"], kind, classes)
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

    def _kind(self, train: Sequence[Example]) -> Kind:
        return recognise(train) if self.kind == "auto" else KINDS[self.kind]

    @override
    def kind_of(self, train: Sequence[Example]) -> str:
        """Return whether labels are classes or numbers; see :class:`TaskConfig`."""
        return self._kind(train).replace("_", " ")

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
