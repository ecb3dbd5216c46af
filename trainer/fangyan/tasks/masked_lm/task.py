"""Masked language modelling: continued pre-training of encoders on raw text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.masking import Unit, hide_at_random, hide_in_turn, tokenize_units
from fangyan.data.splits import DataConfig
from fangyan.data.tokenization import TokenizedSequence, Tokenizer
from fangyan.errors import UserError
from fangyan.tasks.language_model import LanguageModelTask
from fangyan.tasks.task import TaskConfig

if TYPE_CHECKING:
    from fangyan.models.packed import PackedModel
    from fangyan.tasks.masked_lm.predictor import MaskFiller

_RATES = 0.01, 0.9


class MaskedLMConfig(TaskConfig):
    """The hidden words of raw text, by any encoder with a head for its vocabulary."""

    name: Literal["masked_lm"] = "masked_lm"
    fields: ClassVar[tuple[str, ...]] = ("text",)

    mask_rate: Annotated[float, Field(ge=_RATES[0], le=_RATES[1])] = Field(
        0.15,
        description="Share of a text that is hidden: 8 in 10 by the mask token, 1 by a random sub-word, 1 "
        "not.",
    )
    unit: Unit = Field(
        "word",
        description="What is hidden as a whole: the sub-words of a word, of a character, or each alone. A "
        "word is what stands between white space, and a character of scripts that are written without "
        "(Chinese, Thai).",
    )

    @override
    def build(self, splits: Splits, data: DataConfig) -> MaskedLM:
        """Return the task."""
        return MaskedLM(self.mask_rate, self.unit)

    @classmethod
    @override
    def from_export(cls, config: Mapping[str, Any], model_config: Any) -> MaskedLM:
        """Return the task of an exported model."""
        rate, unit = config.get("mask_rate"), str(config.get("unit"))
        if type(rate) is not float or not _RATES[0] <= rate <= _RATES[1] or unit not in get_args(Unit):
            raise ValueError(
                f"mask_rate is {str(rate)[:20]} and unit {unit[:20]!r}, expected a share and one of "
                f"{', '.join(get_args(Unit))}"
            )
        return MaskedLM(rate, cast(Unit, unit))


class MaskedLM(LanguageModelTask):
    """Hidden words; see :class:`fangyan.tasks.task.Task`.

    Metrics are pseudo-perplexities (Salazar et al. 2020, arXiv 1910.14659), of several hidden words.

    Args:
        mask_rate: share of a text's units that is hidden.
        unit: what is hidden as a whole.
    """

    name: ClassVar[str] = "masked_lm"
    is_causal: ClassVar[bool] = False
    peft_task_type: ClassVar[str] = "FEATURE_EXTRACTION"  # PEFT has none for it; this one changes nothing
    pipeline_tag: ClassVar[str] = "fill-mask"
    # Not all encoders come with it.
    head_may_be_missing: ClassVar[bool] = True
    takes_token_masking: ClassVar[bool] = False
    corrupts: ClassVar[bool] = True
    perplexity: ClassVar[str] = "pseudo_perplexity"

    def __init__(self, mask_rate: float = 0.15, unit: Unit = "word"):
        self.mask_rate = mask_rate
        self.unit: Unit = unit

    @property
    @override
    def auto_model(self) -> Any:
        """Return ``AutoModelForMaskedLM``."""
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    @override
    def use_model(self, model: Any, backend: Any) -> None:
        """Refuse a model without a mask token."""
        if backend.mask_token_id is None:
            raise UserError(
                f"model.path: {type(model).__name__} has no mask token, expected an encoder with one"
            )

    @override
    def tokenize(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> list[TokenizedSequence]:
        """Return the sequences of each document, in which nothing is hidden yet."""
        return [
            sequence
            for i, example in enumerate(examples)
            for sequence in tokenize_units(tokenizer, example.fields["text"], max_length, self.unit, i)
        ]

    @override
    def tokenize_scored(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> list[TokenizedSequence]:
        """Return copies of each sequence, in which every word is hidden once."""
        assert tokenizer.mask_id is not None
        return [
            copy
            for sequence in self.tokenize(examples, tokenizer, max_length)
            for copy in hide_in_turn(sequence, self.mask_rate, tokenizer.mask_id)
        ]

    @override
    def corrupt(
        self, sequences: Sequence[TokenizedSequence], drawn: NDArray[np.uint64], tokenizer: Tokenizer
    ) -> list[TokenizedSequence]:
        """Return sequences with hidden words, which are their labels."""
        return hide_at_random(sequences, drawn, self.mask_rate, tokenizer)

    @override
    def predictor(self, model: PackedModel, tokenizer: Tokenizer, max_length: int) -> MaskFiller:
        """Return the model as one that fills in what is hidden."""
        from fangyan.tasks.masked_lm.predictor import MaskFiller

        return MaskFiller(model, tokenizer, max_length)

    @property
    @override
    def scored_as(self) -> dict[str, Any]:
        """Return how much is hidden at a time, on which pseudo-perplexities depend."""
        return self.export_config()

    @override
    def export_config(self) -> dict[str, Any]:
        """Return what is hidden, and how much: evaluation hides as much."""
        return {"mask_rate": self.mask_rate, "unit": self.unit}
