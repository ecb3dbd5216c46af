"""Causal language modelling: labels are the next sub-words, metrics are perplexities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.splits import DataConfig
from fangyan.data.tokenization import TokenizedSequence, Tokenizer, tokenize_text
from fangyan.tasks.language_model import CausalTask
from fangyan.tasks.task import TaskConfig

if TYPE_CHECKING:
    from fangyan.models.packed import PackedModel
    from fangyan.tasks.causal_lm.predictor import TextGenerator


class CausalLMConfig(TaskConfig):
    """The next sub-word of raw text, by any causal language model."""

    name: Literal["causal_lm"] = "causal_lm"
    fields: ClassVar[tuple[str, ...]] = ("text",)
    can_write_texts: ClassVar[bool] = True

    @override
    def build(self, splits: Splits, data: DataConfig) -> CausalLM:
        """Return the task."""
        return CausalLM()

    @classmethod
    @override
    def from_export(cls, config: Mapping[str, Any], model_config: Any) -> CausalLM:
        """Return the task."""
        return CausalLM()


class CausalLM(CausalTask):
    """The next sub-words of documents, and their ends; see :class:`fangyan.tasks.task.Task`."""

    name: ClassVar[str] = "causal_lm"

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
    def predictor(self, model: PackedModel, tokenizer: Tokenizer, max_length: int) -> TextGenerator:
        """Return the model as a writer; it may write beyond the length of its training sequences."""
        from fangyan.tasks.causal_lm.predictor import TextGenerator

        return TextGenerator(model, tokenizer)

    @override
    def export_config(self) -> dict[str, Any]:
        """Return nothing: the model says all."""
        return {}
