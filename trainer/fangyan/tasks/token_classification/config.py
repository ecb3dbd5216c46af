"""The recipe's section of token classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.splits import DataConfig
from fangyan.data.tokenization import LabelPlace
from fangyan.errors import UserError
from fangyan.tasks.class_weights import ClassWeights, weigh
from fangyan.tasks.label_set import labels_of
from fangyan.tasks.task import TaskConfig, TokenUnit
from fangyan.tasks.token_classification.messages import data_messages
from fangyan.tasks.token_classification.recognition import TagPairs, Wanted, recognise
from fangyan.tasks.token_classification.scheme import Notation, Scheme, exported
from fangyan.tasks.token_classification.task import TokenClassification


class TokenClassificationConfig(TaskConfig):
    """A tag for every token, by any encoder or causal model with a token classification head."""

    name: Literal["token_classification"] = "token_classification"
    fields: ClassVar[tuple[str, ...]] = ("tokens", "tags")

    scheme: Wanted = Field(
        "auto",
        description="What the tags are, and so the metrics: words (segmentation: B-/I- or BMES on every "
        "token), entities (iob2, iob1, iobes, bilou, bmes; io: types alone), or plain labels. auto looks at "
        "the tags of train.",
    )
    labels: list[str] | None = Field(None, description="The tag set; by default every tag in the data.")
    subword: Literal["auto", "first", "last", "mean"] = Field(
        "auto",
        description="Which of a token's sub-words has its label, or the mean of all. auto: the last if the "
        "model is causal, since it has read the token only then, otherwise the first.",
    )
    class_weights: ClassWeights = Field(
        None,
        description="Factor on the training loss of each tag, 1 where none is given: {tag: factor}, or "
        "balanced, which is inversely proportional to its frequency in train.",
    )

    @override
    def build(self, splits: Splits, data: DataConfig) -> TokenClassification:
        """Return the task with the tag set of the data, or the recipe's own; see :class:`TaskConfig`."""
        task = self.fit(splits, data.token_unit, getattr(data, "line_per_token", False))
        for example in splits["train"] if self.labels is not None else ():
            task.check(example)
        task.class_weights = self.weights(task, splits["train"])
        return task

    @override
    def kind_of(self, train: Sequence[Example]) -> str:
        """Return scheme and notation of the tags; see :class:`TaskConfig`."""
        found = recognise(TagPairs.of(train), self.scheme, self.labels or ())
        return f"{found.scheme} in {found.notation.name}"

    def weights(self, task: TokenClassification, train: Sequence[Example]) -> list[float] | None:
        """Return the factor on each label's loss, (C,), or None."""
        labels = (label for example in train for label in task.read(example))
        return weigh(self.class_weights, task.labels, labels, "the tag set")

    def fit(
        self, splits: Splits, token_unit: TokenUnit = "words", line_per_token: bool = False
    ) -> TokenClassification:
        """Return the task; both prefixes of every type are in its tag set.

        Args:
            splits: whose tags it has; ``train`` alone says what they are.
            token_unit: into what a text is cut.
            line_per_token: whether a file has a line for every token.
        """
        pairs = {name: TagPairs.of(examples) for name, examples in splits.items()}
        scheme, notation, message = recognise(pairs["train"], self.scheme, self.labels or ())
        messages = [message] if message else []
        messages += data_messages(pairs, scheme, notation, line_per_token)
        labels = self.labels or sorted(set().union(*(split.tags() for split in pairs.values())))
        if self.labels is None or notation != Notation("iob2"):
            labels = notation.label_set(labels)
        return TokenClassification(labels, scheme, token_unit, notation, self.subword, messages)

    @classmethod
    @override
    def from_export(cls, config: Mapping[str, Any], model_config: Any) -> TokenClassification:
        """Return the task of an exported model."""
        labels = labels_of(model_config)
        kinds = {"scheme": Scheme, "tokens": TokenUnit, "subword": LabelPlace}
        scheme, tokens, subword = (exported(config, field, kind) for field, kind in kinds.items())
        notation = Notation.from_export(config.get("notation"))
        try:
            return TokenClassification(labels, scheme, tokens, notation, subword)
        except UserError as error:
            raise ValueError(f"id2label: {error}") from None
