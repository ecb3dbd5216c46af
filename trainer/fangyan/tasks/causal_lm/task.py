"""Causal language modelling: labels are the next sub-words, metrics are perplexities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.findings import Finding
from fangyan.data.splits import DataConfig
from fangyan.data.tokenization import TokenizedSequence, Tokenizer, tokenize_text
from fangyan.tasks.perplexity import perplexities
from fangyan.tasks.task import Metrics, Task, TaskConfig

if TYPE_CHECKING:
    from fangyan.data.packing import Batch
    from fangyan.models.packed import PackedModel
    from fangyan.tasks.causal_lm.predictor import TextGenerator


class CausalLMConfig(TaskConfig):
    """The next sub-word of raw text, by any causal language model."""

    name: Literal["causal_lm"] = "causal_lm"
    fields: ClassVar[tuple[str, ...]] = ("text",)

    @override
    def build(self, splits: Splits, data: DataConfig) -> CausalLM:
        """Return the task."""
        return CausalLM()

    @classmethod
    @override
    def from_export(cls, config: Mapping[str, Any], model_config: Any) -> CausalLM:
        """Return the task."""
        return CausalLM()


class CausalLM(Task):
    """Labels and perplexities of a language model; see :class:`fangyan.tasks.task.Task`."""

    name: ClassVar[str] = "causal_lm"
    is_causal: ClassVar[bool] = True
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str] = "text-generation"
    # The head is part of what is adapted.
    has_new_head: ClassVar[bool] = False
    tokenizer_kwargs: ClassVar[Mapping[str, Any]] = {}
    greater_is_better: ClassVar[bool] = False
    metric_unit: ClassVar[str] = ""

    @property
    @override
    def primary_metric(self) -> str:
        """Return perplexity per character, whatever sub-words a tokenizer makes of a dialect's text."""
        return "character_perplexity"

    @property
    @override
    def metric_names(self) -> Sequence[str]:
        return ("character_perplexity", "subword_perplexity", "bits_per_character")

    @property
    @override
    def auto_model(self) -> Any:
        """Return ``AutoModelForCausalLM``."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    @override
    def model_kwargs(self) -> dict[str, Any]:
        """Return nothing: the model stays as it is."""
        return {}

    @override
    def inputs(self, example: Example) -> str:
        """Return the text."""
        text: str = example.fields["text"]
        return text

    @override
    def findings(self, splits: Splits) -> Iterable[Finding]:
        """Return nothing: any text can be learned."""
        return ()

    @override
    def label_counts(self, splits: Splits) -> Mapping[str, Mapping[str, int]]:
        """Return nothing: the text has no labels but its own."""
        return {}

    @override
    def tokenize(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> list[TokenizedSequence]:
        """Return the sequences of each document, whose labels are the next sub-words."""
        return [
            sequence
            for i, example in enumerate(examples)
            for sequence in tokenize_text(tokenizer, example.fields["text"], max_length, i)
        ]

    @override
    def outputs(self, model: PackedModel, batch: Batch) -> list[tuple[float, int]]:
        """Return the summed loss of the batch in nats, and how many sub-words it is of."""
        return [(float(model.loss(batch).double()), batch.num_valid)]

    @override
    def metrics(self, examples: Sequence[Example], outputs: Sequence[tuple[float, int]]) -> Metrics:
        """Return perplexities, over all sub-words and the end of each document."""
        return perplexities(self.metric_names, examples, outputs)

    @override
    def report(self, examples: Sequence[Example], outputs: Sequence[tuple[float, int]]) -> None:
        """Return nothing: sub-words are too many to report on."""

    @override
    def predictor(self, model: PackedModel, tokenizer: Tokenizer, max_length: int) -> TextGenerator:
        """Return the model as a writer; it may write beyond the length of its training sequences."""
        from fangyan.tasks.causal_lm.predictor import TextGenerator

        return TextGenerator(model, tokenizer)

    @override
    def export_config(self) -> dict[str, Any]:
        """Return nothing: the model says all."""
        return {}
