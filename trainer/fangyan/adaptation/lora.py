"""LoRA (Hu et al. 2021, arXiv 2106.09685), by our kernels, and DoRA, by PEFT."""

from __future__ import annotations

from abc import ABC
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.adaptation.peft_model import TargetedMethod, trained_whole
from fangyan.config import Fraction


class LowRankMethod(TargetedMethod, ABC):
    """A method that adds a product of two small matrices to each weight."""

    supports_new_tokens: ClassVar[bool] = True

    rank: Annotated[int, Field(ge=1, le=256)] = Field(16, description="Rank of every update.")
    alpha: Annotated[float, Field(gt=0.0, le=1e6)] = Field(
        32.0, description="Updates are scaled by alpha / rank."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead, which suits large ranks.")
    dropout: Fraction = Field(0.0, description="Dropout of an adapter's input in training.")

    def low_rank_arguments(self, model: Any, new: list[str]) -> dict[str, Any]:
        """Return what PEFT's configurations of such methods have in common."""
        from fangyan.models.vocabulary import trainable_tokens

        return {
            **trainable_tokens(model),
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "target_modules": self.target_modules(model, new),
            **trained_whole(new),
        }

    @override
    def after_optimizer_step(self, model: Any, step: int) -> None:
        """Check after the second step that adapters learn: a warm-up's first has a learning rate of 0."""
        from fangyan.adaptation.fused_lora import assert_adapters_updated

        if step == 1:
            assert_adapters_updated(model)


class QuantizableMethod(LowRankMethod, ABC):
    """A low-rank method whose frozen weights may be packed."""

    quantization: Literal["nf4"] | None = Field(
        None,
        description="How the frozen weights are kept: nf4 takes 4 bits each (bitsandbytes); by default "
        "engine.precision.",
    )

    @property
    @override
    def base_quantization(self) -> Literal["nf4"] | None:
        """Return the recipe's choice."""
        return self.quantization


class Lora(QuantizableMethod):
    """Low-rank updates beside frozen weights, by our fused kernels."""

    name: Literal["lora"] = "lora"
    peft_type: ClassVar[str] = "LORA"

    @override
    def peft_config(self, model: Any, new: list[str], total_steps: int, **common: Any) -> Any:
        """Return a ``LoraConfig``."""
        import peft

        return peft.LoraConfig(r=self.rank, **self.low_rank_arguments(model, new), **common)


class Dora(QuantizableMethod):
    """LoRA with learned magnitudes (Liu et al. 2024, arXiv 2402.09353), by PEFT."""

    name: Literal["dora"] = "dora"
    uses_dora: ClassVar[bool] = True
    peft_type: ClassVar[str] = "LORA"

    @override
    def peft_config(self, model: Any, new: list[str], total_steps: int, **common: Any) -> Any:
        """Return a ``LoraConfig`` with DoRA."""
        import peft

        arguments = self.low_rank_arguments(model, new)
        return peft.LoraConfig(r=self.rank, use_dora=True, **arguments, **common)
