"""Extractive question answering: the span of a context that answers a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.findings import Finding
from fangyan.data.splits import DataConfig
from fangyan.data.tokenization import TokenizedSequence, Tokenizer
from fangyan.tasks.extractive_qa.alignment import whole_characters
from fangyan.tasks.extractive_qa.checks import WITHOUT, answer_findings, count_answers, cut_answers
from fangyan.tasks.extractive_qa.decoding import Answer, SpanOutput, best_span, join
from fangyan.tasks.extractive_qa.metrics import METRICS, PARTS, answer_counts, answer_metrics
from fangyan.tasks.extractive_qa.windows import Encoder
from fangyan.tasks.resampling import Counts
from fangyan.tasks.task import Metrics, Task, TaskConfig

if TYPE_CHECKING:
    from fangyan.data.packing import Batch
    from fangyan.models.loss_head import Kernels
    from fangyan.models.packed import Layout, PackedModel
    from fangyan.tasks.extractive_qa.predictor import AnswerFinder

_LONGEST_ANSWER = 1 << 20


class ExtractiveQAConfig(TaskConfig):
    """The span of a context that answers a question, by any model with a head for question answering."""

    name: Literal["extractive_qa"] = "extractive_qa"
    fields: ClassVar[tuple[str, ...]] = ("question", "context", "answers")

    max_answer_tokens: Annotated[int, Field(ge=1, le=_LONGEST_ANSWER)] = Field(
        64, description="Most sub-words of an answer that is predicted."
    )

    @override
    def build(self, splits: Splits, data: DataConfig) -> ExtractiveQA:
        """Return the task; questions may have no answer where some of train have none."""
        return ExtractiveQA(self.max_answer_tokens, any(not e.fields["answers"] for e in splits["train"]))

    @classmethod
    @override
    def from_export(cls, config: Mapping[str, Any], model_config: Any) -> ExtractiveQA:
        """Return the task of an exported model."""
        longest, may_be_none = config.get("max_answer_tokens"), config.get("may_be_none")
        if (
            type(longest) is not int
            or not 1 <= longest <= _LONGEST_ANSWER
            or not isinstance(may_be_none, bool)
        ):
            raise ValueError(
                f"max_answer_tokens is {str(longest)[:20]} and may_be_none {str(may_be_none)[:20]!r}, "
                "expected a number of sub-words and a bool"
            )
        return ExtractiveQA(longest, may_be_none)


# Questions of train by which a guess is chosen.
_GUESSED = 10_000


class ExtractiveQA(Task):
    """Answers and their metrics; see :class:`fangyan.tasks.task.Task`.

    Args:
        max_answer_tokens: most sub-words of an answer that is predicted.
        may_be_none: whether a question may have no answer.
    """

    name: ClassVar[str] = "extractive_qa"
    is_causal: ClassVar[bool] = False
    peft_task_type: ClassVar[str] = "QUESTION_ANS"
    pipeline_tag: ClassVar[str] = "question-answering"
    has_new_head: ClassVar[bool] = True
    # It hides labelled sub-words, of which a sequence has one in name alone.
    takes_token_masking: ClassVar[bool] = False
    tokenizer_kwargs: ClassVar[Mapping[str, Any]] = {}
    greater_is_better: ClassVar[bool] = True
    metric_unit: ClassVar[str] = "percent"
    has_targets = True

    def __init__(self, max_answer_tokens: int = 64, may_be_none: bool = False):
        self.max_answer_tokens = max_answer_tokens
        self.may_be_none = may_be_none

    @property
    @override
    def primary_metric(self) -> str:
        """Return F1 of the answers' words."""
        return METRICS[0]

    @property
    @override
    def metric_names(self) -> Sequence[str]:
        """Return the names of all metrics; more where questions may have no answer."""
        return (*METRICS, *PARTS) if self.may_be_none else METRICS

    @property
    @override
    def auto_model(self) -> Any:
        """Return ``AutoModelForQuestionAnswering``."""
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    @override
    def model_kwargs(self) -> dict[str, Any]:
        """Return the outputs of the head: a start and an end."""
        return {"num_labels": 2}

    @override
    def pack(self, model: Any, layout: Layout, kernels: Kernels = "auto") -> PackedModel:
        """Return a model that finds spans."""
        from fangyan.models.spans import SpanModel

        return SpanModel(model, layout, kernels)

    @override
    def inputs(self, example: Example) -> str:
        """Return the question and its context."""
        return f"{example.fields['question']}\t{example.fields['context']}"

    @override
    def findings(self, splits: Splits) -> Iterable[Finding]:
        """Return what is wrong with the answers; see :mod:`fangyan.tasks.extractive_qa.checks`."""
        return answer_findings(count_answers(splits))

    @override
    def cut_findings(
        self, name: str, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> Iterable[Finding]:
        """Return answers that cannot be learned, and questions that are longer than a sequence."""
        return cut_answers(name, examples, Encoder(tokenizer, max_length))

    @override
    def label_counts(self, splits: Splits) -> Mapping[str, Mapping[str, int]]:
        """Return how many questions have an answer, where some have none."""
        counts = count_answers(splits)
        return counts if any(found[WITHOUT] for found in counts.values()) else {}

    @override
    def tokenize(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> list[TokenizedSequence]:
        """Return the windows of each context, with what they learn: the first of the answers.

        An example whose answer no sub-words stand for has none; :meth:`cut_findings` counts these.
        """
        encode = Encoder(tokenizer, max_length)
        sequences: list[TokenizedSequence] = []
        for i, example in enumerate(examples):
            context, answers = example.fields["context"], example.fields["answers"]
            encoded = encode(example.fields["question"], context)
            found = (encoded.locate(context, answer) for answer in answers)
            answer = next((span for span in found if span is not None), None)
            if answer is not None or not answers:
                sequences += encoded.labelled(i, answer)
        return sequences

    @override
    def tokenize_scored(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> list[TokenizedSequence]:
        """Return the windows of each context, which do not depend on the answers."""
        encode = Encoder(tokenizer, max_length)
        sequences = []
        for i, example in enumerate(examples):
            encoded = encode(example.fields["question"], example.fields["context"])
            sequences += [encoded.window(i, *bound) for bound in encoded.bounds()]
        return sequences

    @override
    def outputs(self, model: PackedModel, batch: Batch) -> list[SpanOutput]:
        """Return the best span of every window; see :class:`SpanOutput`."""
        logits = model.split_logits(model.logits(batch).double().cpu(), batch)
        return [
            best_span(sequence, part.numpy(), self.max_answer_tokens)
            for sequence, part in zip(batch.sequences, logits, strict=True)
        ]

    def answers(self, examples: Sequence[Example], outputs: Iterable[SpanOutput]) -> list[Answer]:
        """Return the answer to each question, in whole characters."""
        found = join(outputs, len(examples), self.may_be_none)
        return [
            Answer(*whole_characters(example.fields["context"], start, end), score)
            for example, (start, end, score) in zip(examples, found, strict=True)
        ]

    @override
    def metrics(self, examples: Sequence[Example], outputs: Sequence[SpanOutput]) -> Metrics:
        """Return F1 and exact match, in percent."""
        return answer_metrics(self.metric_names, examples, self._texts(examples, outputs))

    def _texts(self, examples: Sequence[Example], outputs: Sequence[SpanOutput]) -> list[str]:
        """Return the answer to each question, "" for none."""
        return [
            example.fields["context"][max(start, 0) : max(end, 0)]
            for example, (start, end, _) in zip(examples, self.answers(examples, outputs), strict=True)
        ]

    @override
    def resampler(self, examples: Sequence[Example], outputs: Sequence[SpanOutput]) -> Counts:
        """Return what computes the metrics of resampled questions."""
        return answer_counts(self.metric_names, examples, self._texts(examples, outputs))

    @override
    def predicted(self, examples: Sequence[Example], outputs: Sequence[SpanOutput]) -> list[tuple[Any, ...]]:
        """Return the answer to each question."""
        return [(text,) for text in self._texts(examples, outputs)]

    @override
    def gold(self, examples: Sequence[Example]) -> list[tuple[Any, ...]]:
        """Return the answers to each question, any of which is right; none where it has none."""
        return [
            tuple(dict.fromkeys(answer["text"] for answer in example.fields["answers"]))
            for example in examples
        ]

    @override
    def floor(self, splits: Splits) -> dict[str, Metrics]:
        """Return the metrics of answering nothing, or the whole context: of what is better on train."""

        def guess(examples: Sequence[Example], whole: bool) -> Metrics:
            found = [example.fields["context"] if whole else "" for example in examples]
            return answer_metrics(self.metric_names, examples, found)

        train = list(islice(splits["train"], _GUESSED))
        metric = self.primary_metric
        whole = guess(train, True)[metric] >= guess(train, False)[metric]
        return {name: guess(splits[name], whole) for name in splits.keys() - {"train"}}

    @override
    def report(self, examples: Sequence[Example], outputs: Sequence[SpanOutput]) -> None:
        """Return nothing: answers are of no classes."""

    @override
    def predictor(self, model: PackedModel, tokenizer: Tokenizer, max_length: int) -> AnswerFinder:
        """Return the model as one that answers questions."""
        from fangyan.tasks.evaluation import run_batches
        from fangyan.tasks.extractive_qa.predictor import AnswerFinder

        def find(examples: Sequence[Example]) -> list[Answer]:
            sequences = self.tokenize_scored(examples, tokenizer, max_length)
            return self.answers(examples, run_batches(self, model, sequences, tokenizer.pad_id))

        return AnswerFinder(self, find)

    @property
    @override
    def usage_note(self) -> str:
        """Return how question and context are read, and what stands for no answer."""
        none = "no answer" if self.may_be_none else "no answer in this part of a long context"
        return (
            "Question and context are a pair of the tokenizer's; start and end logits of the first sub-word "
            f"stand for {none}. Of an adapter, call model.get_base_model(): PEFT's own class for question "
            "answering passes no token_type_ids on."
        )

    @override
    def export_config(self) -> dict[str, Any]:
        """Return what a prediction may be."""
        return {"max_answer_tokens": self.max_answer_tokens, "may_be_none": self.may_be_none}
