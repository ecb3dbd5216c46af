"""Token classification: tag sets, labels, decoding and metrics."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fangyan.data.example import PREFIX, Example, Splits
from fangyan.data.findings import Finding
from fangyan.data.tokenization import (
    IGNORE_INDEX,
    LabelPlace,
    TokenizedSequence,
    Tokenizer,
    tokenize_words,
)
from fangyan.errors import UserError
from fangyan.tasks.label_set import config_fields
from fangyan.tasks.report import Report
from fangyan.tasks.resampling import Counts
from fangyan.tasks.task import Metrics, Task, TokenUnit, Unit
from fangyan.tasks.token_classification.checks import count_tags, cut_tokens, tag_findings
from fangyan.tasks.token_classification.decoding import Decoder, make_decoder
from fangyan.tasks.token_classification.floor import MostFrequentTags
from fangyan.tasks.token_classification.messages import unlearned_message
from fangyan.tasks.token_classification.metrics import PRIMARY_METRIC, tag_metrics
from fangyan.tasks.token_classification.outputs import SpanOutput, marked_tokens, whole_examples
from fangyan.tasks.token_classification.predictor import Kept, Tagged, TokenClassifier
from fangyan.tasks.token_classification.recognition import TagPairs
from fangyan.tasks.token_classification.report import tag_report
from fangyan.tasks.token_classification.resampling import tag_counts
from fangyan.tasks.token_classification.scheme import Notation, Scheme

if TYPE_CHECKING:
    from fangyan.data.packing import Batch
    from fangyan.models.packed import PackedModel


class TokenClassification(Task):
    """Labels, metrics and decoding of a tagging task; see :class:`fangyan.tasks.task.Task`.

    Args:
        labels: the tag set, in the order of the head's outputs: IOB2, or its like for a segmentation.
        scheme: what the tags are.
        token_unit: into what a text is cut to be tagged.
        notation: in which files have their tags.
        subword: which of a token's sub-words has its label, or ``mean``; ``auto`` until :meth:`use_model`.
        messages: on the data, for the user.
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

    def __init__(
        self,
        labels: list[str],
        scheme: Scheme,
        token_unit: TokenUnit = "words",
        notation: Notation | None = None,
        subword: Literal["auto"] | LabelPlace = "auto",
        messages: Sequence[str] = (),
    ):
        self.labels = labels
        self.scheme: Scheme = scheme
        self.token_unit: TokenUnit = token_unit
        self.notation = notation or Notation("plain" if scheme == "plain" else "iob2")
        self.subword: Literal["auto"] | LabelPlace = subword
        self._messages = list(messages)
        self._kept = Kept()
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
        return config_fields(self.labels)

    @override
    def use_model(self, model: Any, backend: Any) -> None:
        """Choose which of a token's sub-words has its label."""
        from fangyan.models.structure import is_causal

        if self.subword == "auto":
            self.subword = "last" if is_causal(model) else "first"

    def read(self, example: Example) -> list[str]:
        """Return the example's tags as labels: IOB2, or its like for a segmentation."""
        return self.notation.read(example.fields["tags"], self.scheme)

    def check(self, example: Example) -> None:
        """Check that the tags of an example can be learned.

        Raises:
            UserError: for a tag that is not in the tag set.
        """
        fields = example.fields
        for token, tag, label in zip(fields["tokens"], fields["tags"], self.read(example), strict=True):
            if label not in self._index:
                raise UserError(
                    f"{example.source}: tag {tag!r} at token {token!r} is not in the tag set of "
                    f"{len(self.labels)}: {', '.join(self.labels[:8])}{', …' if len(self.labels) > 8 else ''}"
                )

    def classes(self, example: Example) -> list[int]:
        """Return the head's output for each of the example's tags, ``IGNORE_INDEX`` for one it has not."""
        return [self._index.get(label, IGNORE_INDEX) for label in self.read(example)]

    @override
    def inputs(self, example: Example) -> tuple[str, ...]:
        """Return the tokens."""
        tokens: tuple[str, ...] = example.fields["tokens"]
        return tokens

    @override
    def findings(self, splits: Splits) -> Iterable[Finding]:
        """Return what is wrong with the tags; see :mod:`fangyan.tasks.token_classification.checks`."""
        yield from (Finding.parse("warning", message) for message in self._messages)
        yield from tag_findings(splits)

    @override
    def label_counts(self, splits: Splits) -> Mapping[str, Mapping[str, int]]:
        """Return how often each tag occurs."""
        return count_tags(splits)

    @override
    def cut_findings(
        self, name: str, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> Iterable[Finding]:
        """Return tokens with more sub-words than a sequence has room for."""
        return cut_tokens(name, examples, tokenizer, max_length)

    @override
    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Return a message on tags that are not in the tag set, and so are scored as errors."""
        pairs = TagPairs.of(examples)
        unlearned = [tag for tag in pairs.tags() if not self.learned(tag)]
        return [unlearned_message(pairs, unlearned)] if unlearned else []

    def learned(self, tag: str) -> bool:
        """Return whether a tag, as files have it, is in the tag set."""
        return self.notation.read([tag], self.scheme)[0] in self._index

    @override
    def tokenize(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> list[TokenizedSequence]:
        """Return the sequences of each example, with labels where it has tags."""
        sequences = []
        for i, example in enumerate(examples):
            tokens = example.fields["tokens"]
            sequences += tokenize_words(
                tokenizer,
                tokens,
                self.classes(example) if "tags" in example.fields else None,
                max_length,
                i,
                # Characters without word of it stand side by side.
                spaces=example.fields.get("spaces", [self.token_unit == "words"] * len(tokens)),
                label_place="first" if self.subword == "auto" else self.subword,
                prefix=example.fields.get(PREFIX),
            )
        return sequences

    @override
    def outputs(self, model: PackedModel, batch: Batch) -> list[SpanOutput]:
        """Return the classes of every sequence's words; see :class:`SpanOutput`."""
        log_probabilities = model.logits(batch).float().log_softmax(-1).cpu().numpy()
        hidden = model.head_inputs(batch).float().cpu().numpy() if self._kept.hidden else None
        outputs = []
        for sequence, (row, column) in zip(batch.sequences, batch.offsets, strict=True):
            words = sequence.alignment
            assert words is not None
            start, end = words.span
            places = [column + place for place in words.places[start - words.start : end - words.start]]
            scores_TC = log_probabilities[row, places]
            whole = end - start == words.num_words
            classes = self._decode(scores_TC) if whole else None
            kept = scores_TC if self._kept.scores or not whole else None
            hidden_TH = None if hidden is None else hidden[row, places]
            outputs.append(SpanOutput(sequence.example, start, classes, kept, hidden_TH))
        return outputs

    def join(self, outputs: Iterable[SpanOutput], count: int) -> list[tuple[str, ...]]:
        """Return the tags of each of ``count`` examples.

        Sentences in several sequences are decoded here, whole.
        """
        classes: list[list[int] | None] = [None] * count
        pieces: list[SpanOutput] = []
        for output in outputs:
            if output.classes is not None:
                classes[output.example] = output.classes
            else:
                pieces.append(output)
        for example, scores_TC in whole_examples(pieces, "log_probabilities_TC").items():
            # Where one sequence scores the whole sentence, the others score nothing.
            classes[example] = classes[example] or self._decode(scores_TC)
        return [tuple(self.labels[i] for i in sentence or ()) for sentence in classes]

    @override
    def metrics(self, examples: Sequence[Example], outputs: Sequence[SpanOutput]) -> Metrics:
        """Return all metrics of the scheme, in percent."""
        gold = [self.read(example) for example in examples]
        return tag_metrics(gold, self.join(outputs, len(examples)), self.scheme)

    @override
    def resampler(self, examples: Sequence[Example], outputs: Sequence[SpanOutput]) -> Counts:
        """Return what computes the scheme's metrics of resampled sentences."""
        gold = [self.read(example) for example in examples]
        return tag_counts(gold, self.join(outputs, len(examples)), self.scheme)

    @property
    @override
    def scored_as(self) -> dict[str, Any]:
        """Return the notation, by which gold tags are read."""
        return {"notation": self.notation.name}

    @override
    def predicted(self, examples: Sequence[Example], outputs: Sequence[SpanOutput]) -> list[tuple[Any, ...]]:
        """Return the tags of each sentence."""
        return list(self.join(outputs, len(examples)))

    @override
    def gold(self, examples: Sequence[Example]) -> list[tuple[Any, ...]]:
        """Return the tags of each sentence, in the notation of those predicted."""
        return [tuple(self.read(example)) for example in examples]

    @override
    def with_scores(self) -> TokenClassification:
        """Return a copy whose outputs have the log-probabilities of every sentence."""
        scoring = copy.copy(self)
        scoring._kept = Kept(scores=True)
        return scoring

    @override
    def class_scores(
        self, examples: Sequence[Example], outputs: Sequence[SpanOutput]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the scores of all tokens, one sentence after the other."""
        scores = whole_examples(outputs, "log_probabilities_TC")
        gold = [label for example in examples for label in self.classes(example)]
        return np.concatenate([scores[i] for i in range(len(examples))]), np.array(gold, dtype=np.int64)

    @override
    def floor(self, splits: Splits) -> dict[str, Metrics]:
        """Return the metrics of each word's most frequent tag."""
        pairs = ((example.fields["tokens"], self.read(example)) for example in splits["train"])
        baseline = MostFrequentTags(pairs)
        found = {}
        for name in splits.keys() - {"train"}:
            predicted = [baseline.tag(example.fields["tokens"]) for example in splits[name]]
            gold = [self.read(example) for example in splits[name]]
            found[name] = tag_metrics(gold, predicted, self.scheme)
        return found

    @override
    def report(self, examples: Sequence[Example], outputs: Sequence[SpanOutput]) -> Report:
        """Return scores of each tag, entity type or word tag."""
        gold = [self.read(example) for example in examples]
        return tag_report(gold, self.join(outputs, len(examples)), self.scheme)

    @property
    @override
    def unit_labels(self) -> Sequence[str]:
        """Return the tag set."""
        return self.labels

    @override
    def units(self, example: Example) -> list[Unit]:
        """Return each token in its sentence; see :func:`marked_tokens`."""
        return marked_tokens(example, self.read(example), self.token_unit == "words")

    @override
    def unit_output(self, example: int, log_probabilities_UC: NDArray[np.float32]) -> SpanOutput:
        return SpanOutput(example, 0, None, log_probabilities_UC)

    @override
    def predictor(self, model: PackedModel, tokenizer: Tokenizer, max_length: int) -> TokenClassifier:
        """Return the model as a tagger."""
        from fangyan.tasks.evaluation import run_batches

        self.use_model(model.base, tokenizer.backend)

        def tag(examples: Sequence[Example], kept: Kept) -> list[Tagged]:
            keeping = copy.copy(self)
            keeping._kept = kept
            sequences = self.tokenize(examples, tokenizer, max_length)
            outputs = run_batches(keeping, model, sequences, tokenizer.pad_id)
            scores = whole_examples(outputs, "log_probabilities_TC") if kept.scores else {}
            hidden = whole_examples(outputs, "hidden_TH")
            tags = self.join(outputs, len(examples))
            return [Tagged(sentence, scores.get(i), hidden.get(i)) for i, sentence in enumerate(tags)]

        return TokenClassifier(self, tag)

    @property
    @override
    def usage_note(self) -> str:
        """Return how tokens and their tags have to be read without fangyan."""
        whose = f"its {self.subword} sub-word that is more than a space"
        if self.subword == "mean":
            whose = "the mean of the logits of its sub-words, without those at its ends that are but a space"
        return (
            f"A token's tag is that of {whose}. Tokens are "
            "tokenized one by one; those that follow white space begin with the tokenizer's mark of a space, "
            "if it has one, and others do not."
        )

    @override
    def export_config(self) -> dict[str, Any]:
        """Return what the model's own configuration, which has the labels, does not say."""
        return {
            "scheme": self.scheme,
            "notation": self.notation.to_export(),
            "tokens": self.token_unit,
            "subword": self.subword,
        }
