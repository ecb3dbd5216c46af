"""Token classification: tag sets, labels, decoding and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.splits import DataConfig
from fangyan.data.tokenization import TokenizedSequence, Tokenizer, tokenize_words
from fangyan.errors import UserError
from fangyan.tasks.task import Metrics, Task, TaskConfig, TokenUnit
from fangyan.tasks.token_classification.decoding import Decoder, make_decoder
from fangyan.tasks.token_classification.metrics import PRIMARY_METRIC, tag_metrics
from fangyan.tasks.token_classification.predictor import TokenClassifier
from fangyan.tasks.token_classification.scheme import Scheme, infer_scheme

if TYPE_CHECKING:
    from fangyan.data.packing import Batch
    from fangyan.models.packed import PackedModel


@dataclass(frozen=True, slots=True)
class SpanOutput:
    """The output of one sequence.

    Attributes:
        example: index of its example.
        start: of the words that the sequence scores.
        classes: of those words, decoded, where they are the whole example: (words,).
        log_probabilities_TC: of those words, where other sequences have the rest: (words, C).
    """

    example: int
    start: int
    classes: list[int] | None
    log_probabilities_TC: NDArray[np.float32] | None = None


class TokenClassificationConfig(TaskConfig):
    """A tag for every token, by any encoder or causal model with a token classification head."""

    name: Literal["token_classification"] = "token_classification"
    fields: ClassVar[tuple[str, ...]] = ("tokens", "tags")

    scheme: Literal["auto", "segmentation", "iob2", "plain"] = Field(
        "auto",
        description="What the tags are, and so the metrics: B-/I- on every token (segmentation), entities in "
        "IOB2 with O (iob2), or plain labels. auto looks at the tags.",
    )
    labels: list[str] | None = Field(None, description="The tag set; by default every tag in the data.")

    @override
    def build(self, splits: Splits, data: DataConfig) -> TokenClassification:
        """Return the task with the tag set of the data, or the recipe's own; see :class:`TaskConfig`."""
        task = self.fit(splits, data.token_unit)
        for examples in splits.values():
            for example in examples:
                task.classes(example)
        return task

    def fit(self, splits: Splits, token_unit: TokenUnit = "words") -> TokenClassification:
        """Return the task; both prefixes of every span type are in its tag set."""
        tags = (tag for examples in splits.values() for example in examples for tag in example.fields["tags"])
        found = sorted(set(tags))
        scheme = infer_scheme(found) if self.scheme == "auto" else self.scheme
        if self.labels is not None:
            return TokenClassification(self.labels, scheme, token_unit)
        if scheme == "plain":
            return TokenClassification(found, scheme, token_unit)
        types = sorted({tag[2:] for tag in found if tag != "O"})
        outside = ["O"] if "O" in found else []
        labels = outside + [f"{prefix}-{kind}" for kind in types for prefix in "BI"]
        return TokenClassification(labels, scheme, token_unit)

    @classmethod
    @override
    def from_export(cls, config: Mapping[str, Any], model_config: Any) -> TokenClassification:
        """Return the task of an exported model."""
        labels = [model_config.id2label[i] for i in range(model_config.num_labels)]
        return TokenClassification(labels, config["scheme"], config["tokens"])


class TokenClassification(Task):
    """Labels, metrics and decoding of a tagging task; see :class:`fangyan.tasks.task.Task`.

    Args:
        labels: the tag set, in the order of the head's outputs.
        scheme: what the tags are.
        token_unit: into what a text is cut to be tagged.
    """

    name: ClassVar[str] = "token_classification"
    is_causal: ClassVar[bool] = False
    peft_task_type: ClassVar[str] = "TOKEN_CLS"
    pipeline_tag: ClassVar[str] = "token-classification"
    has_new_head: ClassVar[bool] = True
    # Words are tokenized one by one: a byte-level tokenizer has to see the space before each.
    tokenizer_kwargs: ClassVar[Mapping[str, Any]] = {"add_prefix_space": True}
    greater_is_better: ClassVar[bool] = True
    metric_unit: ClassVar[str] = "percent"

    def __init__(self, labels: list[str], scheme: Scheme, token_unit: TokenUnit = "words"):
        self.labels = labels
        self.scheme: Scheme = scheme
        self.token_unit: TokenUnit = token_unit
        self._index = {label: i for i, label in enumerate(labels)}
        self._decode: Decoder = make_decoder(labels, scheme)

    @property
    @override
    def primary_metric(self) -> str:
        """Return F1 of what the scheme marks, or accuracy."""
        return PRIMARY_METRIC[self.scheme]

    @property
    @override
    def metric_names(self) -> Sequence[str]:
        """Return the names of the scheme's metrics."""
        return list(tag_metrics([], [], self.scheme))

    @property
    @override
    def auto_model(self) -> Any:
        """Return ``AutoModelForTokenClassification``."""
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    @override
    def model_kwargs(self) -> dict[str, Any]:
        """Return the labels, as a model's configuration has them."""
        id2label = dict(enumerate(self.labels))
        return {"num_labels": len(self.labels), "id2label": id2label, "label2id": dict(self._index)}

    def classes(self, example: Example) -> list[int]:
        """Return the head's output for each of the example's tags.

        Raises:
            UserError: for a tag that is not in the tag set.
        """
        for token, tag in zip(example.fields["tokens"], example.fields["tags"], strict=True):
            if tag not in self._index:
                raise UserError(
                    f"{example.source}: tag {tag!r} at token {token!r} is not in the tag set of "
                    f"{len(self.labels)}: {', '.join(self.labels[:8])}{', …' if len(self.labels) > 8 else ''}"
                )
        return [self._index[tag] for tag in example.fields["tags"]]

    @override
    def warnings(self, splits: Splits) -> list[str]:
        """Warn about tags that never occur in train: a typo, or a rare tag."""
        tags = {
            name: {tag for example in examples for tag in example.fields["tags"]}
            for name, examples in splits.items()
        }
        unseen = sorted(set().union(*tags.values()) - tags["train"])
        return [f"tags that never occur in train: {', '.join(unseen)}"] if unseen else []

    @override
    def tokenize(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> list[TokenizedSequence]:
        """Return the sequences of each example, with labels where it has tags."""
        sequences = []
        for i, example in enumerate(examples):
            classes = self.classes(example) if "tags" in example.fields else None
            sequences += tokenize_words(tokenizer, example.fields["tokens"], classes, max_length, i)
        return sequences

    @override
    def outputs(self, model: PackedModel, batch: Batch) -> list[SpanOutput]:
        """Return the classes of every sequence's words; see :class:`SpanOutput`."""
        log_probabilities = model.logits(batch).float().log_softmax(-1).cpu().numpy()
        outputs = []
        for sequence, (row, column) in zip(batch.sequences, batch.offsets, strict=True):
            words = sequence.alignment
            assert words is not None
            start, end = words.span
            places = [column + place for place in words.places[start - words.start : end - words.start]]
            scores_TC = log_probabilities[row, places]
            if end - start == words.num_words:
                outputs.append(SpanOutput(sequence.example, start, self._decode(scores_TC)))
            else:
                outputs.append(SpanOutput(sequence.example, start, None, scores_TC))
        return outputs

    def join(self, outputs: Iterable[SpanOutput], count: int) -> list[tuple[str, ...]]:
        """Return the tags of each of ``count`` examples.

        Sentences in several sequences are decoded here, whole.
        """
        classes: list[list[int]] = [[] for _ in range(count)]
        pieces: dict[int, list[SpanOutput]] = {}
        for output in outputs:
            if output.classes is not None:
                classes[output.example] = output.classes
            else:
                pieces.setdefault(output.example, []).append(output)
        for example, spans in pieces.items():
            if classes[example]:  # one sequence scores the whole sentence, the others nothing
                continue
            ordered = sorted(spans, key=lambda span: span.start)
            scores = [span.log_probabilities_TC for span in ordered if span.log_probabilities_TC is not None]
            classes[example] = self._decode(np.concatenate(scores))
        return [tuple(self.labels[i] for i in sentence) for sentence in classes]

    @override
    def metrics(self, examples: Sequence[Example], outputs: Sequence[SpanOutput]) -> Metrics:
        """Return all metrics of the scheme, in percent."""
        gold = [example.fields["tags"] for example in examples]
        return tag_metrics(gold, self.join(outputs, len(examples)), self.scheme)

    @override
    def predictor(self, model: PackedModel, tokenizer: Tokenizer, max_length: int) -> TokenClassifier:
        """Return the model as a tagger."""
        from fangyan.tasks.evaluation import run_batches

        def tag(sentences: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
            examples = [Example({"tokens": tokens}, "", "") for tokens in sentences]
            sequences = self.tokenize(examples, tokenizer, max_length)
            outputs = run_batches(self, model, sequences, tokenizer.pad_id)
            return self.join(outputs, len(sentences))

        return TokenClassifier(self, tag, self.scheme, self.token_unit)

    @override
    def export_config(self) -> dict[str, Any]:
        """Return scheme and token unit; the labels are in the model's own configuration."""
        return {"scheme": self.scheme, "tokens": self.token_unit}
