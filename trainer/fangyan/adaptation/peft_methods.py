"""The methods that are PEFT's alone."""

from __future__ import annotations

import math
from abc import ABC
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.adaptation.lora import LowRankMethod
from fangyan.adaptation.peft_model import PeftMethod, TargetedMethod, trained_whole
from fangyan.errors import UserError

# PEFT's names of the importance of every weight now, and the averages of it and of its uncertainty.
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLora(LowRankMethod):
    """LoRA that moves ranks to the weights that need them (Zhang et al. 2023, arXiv 2303.10512)."""

    name: Literal["adalora"] = "adalora"
    peft_type: ClassVar[str] = "ADALORA"
    # It reads whole gradients, which ZeRO shards.
    largest_zero_stage: ClassVar[int] = 0
    reads_gradients: ClassVar[bool] = True

    @override
    def peft_config(self, model: Any, new: list[str], total_steps: int, **common: Any) -> Any:
        """Return an ``AdaLoraConfig``: a tenth of the steps to warm up, the last third at the final rank."""
        import peft

        return peft.AdaLoraConfig(
            init_r=self.rank + self.rank // 2,
            target_r=self.rank,
            tinit=total_steps // 10,
            tfinal=total_steps // 3,
            deltaT=max(1, total_steps // 100),
            total_step=total_steps,
            **self.low_rank_arguments(model, new),
            **common,
        )

    @override
    def before_optimizer_step(self, model: Any, step: int) -> None:
        """Reallocate ranks by the gradients, which are gone after the optimizer's step."""
        model.base_model.update_and_allocate(step)

    @override
    def after_optimizer_step(self, model: Any, step: int) -> None:
        """Set the singular values of dropped ranks to 0, which the optimizer has moved: exports have none."""
        super().after_optimizer_step(model, step)
        if pattern := model.active_peft_config.rank_pattern:
            tuner = model.base_model
            tuner.rankallocator.mask_using_rank_pattern(tuner.model, pattern)

    @override
    def state_dict(self, model: Any) -> dict[str, Any]:
        """Return the importance of every weight, and the ranks that are left."""
        allocator = model.base_model.rankallocator
        importance = {name: getattr(allocator, name) for name in _IMPORTANCE}
        return {**importance, "rank_pattern": model.active_peft_config.rank_pattern}

    @override
    def load_state_dict(self, model: Any, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        for name in _IMPORTANCE:
            setattr(model.base_model.rankallocator, name, state[name])
        model.active_peft_config.rank_pattern = state["rank_pattern"]


class IA3(TargetedMethod):
    """A learned scale per output of each layer (Liu et al. 2022, arXiv 2205.05638)."""

    name: Literal["ia3"] = "ia3"
    peft_type: ClassVar[str] = "IA3"

    @override
    def peft_config(self, model: Any, new: list[str], total_steps: int, **common: Any) -> Any:
        """Return an ``IA3Config``."""
        import peft

        targets = self.target_modules(model, new)
        return peft.IA3Config(target_modules=targets, feedforward_modules=[], **trained_whole(new), **common)


class OSF(TargetedMethod):
    """Weights' smallest singular directions, orthogonal to the others (Nayak et al. 2025, arXiv 2504.07097).

    Orthogonal subspace fine-tuning keeps what the largest singular directions say, and so what a model knew.
    """

    name: Literal["osf"] = "osf"
    peft_type: ClassVar[str] = "OSF"

    preserved: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5,
        description="Share of the singular directions of each weight, the largest, that no gradient changes.",
    )

    @override
    def peft_config(self, model: Any, new: list[str], total_steps: int, **common: Any) -> Any:
        """Return an ``OSFConfig``.

        Raises:
            UserError: for layers that PEFT would leave frozen, or without a direction that is preserved.
        """
        import peft
        from torch import nn

        targets = self.target_modules(model, new)
        layers = {name: model.get_submodule(name) for name in targets}
        others = [name for name, layer in layers.items() if not isinstance(layer, nn.Linear)]
        if others:
            raise UserError(
                f"adaptation.name: osf is for linear layers, found {type(layers[others[0]]).__name__} as "
                f"{others[0]} of {type(model).__name__}; expected lora"
            )
        fewest = min((min(layer.weight.shape) for layer in layers.values()), default=0)
        if targets and int(self.preserved * fewest) < 1:
            raise UserError(
                f"adaptation.preserved: {self.preserved} of {fewest} singular directions is none, expected "
                f"{math.ceil(1000 / fewest) / 1000} at least"
            )
        return peft.OSFConfig(
            target_modules=targets, effective_rank=self.preserved, **trained_whole(new), **common
        )

    @override
    def apply(self, model: Any, **arguments: Any) -> Any:
        """Return PEFT's model; see :class:`PeftMethod`."""
        import torch

        adapted = super().apply(model, **arguments)
        for parameter in adapted.parameters():
            if parameter.requires_grad and parameter.stride()[-1:] != (1,):
                # A slice of one column has the stride of what it is of, which DeepSpeed refuses.
                parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        return adapted


class PromptMethod(PeftMethod, ABC):
    """A method that puts virtual tokens before every sentence, so that none can share a row."""

    supports_packing: ClassVar[bool] = False

    virtual_tokens: Annotated[int, Field(ge=1, le=10_000)] = Field(
        20, description="Virtual tokens before every sentence."
    )

    @property
    @override
    def added_tokens(self) -> int:
        return self.virtual_tokens

    def prompt_arguments(self, new: list[str]) -> dict[str, int]:
        """Return what PEFT's configurations of prompts have in common.

        Raises:
            UserError: for new modules that PEFT would not save: it knows heads by these names alone.
        """
        unsaved = [name for name in new if name.rpartition(".")[2] not in ("classifier", "score")]
        if unsaved:
            raise UserError(
                f"adaptation.name: {self.name} cannot save the new module {unsaved[0]}, expected lora"
            )
        return {"num_virtual_tokens": self.virtual_tokens}


class PrefixTuning(PromptMethod):
    """Learned keys and values before every layer's own (Li & Liang 2021, arXiv 2101.00190)."""

    name: Literal["prefix_tuning"] = "prefix_tuning"
    peft_type: ClassVar[str] = "PREFIX_TUNING"

    @override
    def peft_config(self, model: Any, new: list[str], total_steps: int, **common: Any) -> Any:
        """Return a ``PrefixTuningConfig``."""
        import peft

        return peft.PrefixTuningConfig(**self.prompt_arguments(new), **common)


class PromptTuning(PromptMethod):
    """Learned embeddings before every sentence's own (Lester et al. 2021, arXiv 2104.08691)."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    peft_type: ClassVar[str] = "PROMPT_TUNING"

    @override
    def peft_config(self, model: Any, new: list[str], total_steps: int, **common: Any) -> Any:
        """Return a ``PromptTuningConfig``."""
        import peft

        return peft.PromptTuningConfig(**self.prompt_arguments(new), **common)
