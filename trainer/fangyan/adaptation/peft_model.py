"""What the methods that PEFT implements have in common: one adapter beside frozen weights.

PEFT makes, loads and saves every adapter, so its files go both ways.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field
from typing_extensions import override

from fangyan.adaptation.adaptation import Adaptation
from fangyan.config import PathName
from fangyan.errors import UserError

if TYPE_CHECKING:
    import torch

    from fangyan.models.loss_head import Kernels


class PeftMethod(Adaptation, ABC):
    """An adapter of PEFT's: the model's own weights are frozen."""

    trains_base_weights: ClassVar[bool] = False
    # PEFT's type of the adapter.
    peft_type: ClassVar[str]
    uses_dora: ClassVar[bool] = False

    adapter_path: PathName | None = Field(
        None, description="A folder with an adapter as PEFT writes it, to train further; its settings hold."
    )

    @pydantic.model_validator(mode="after")
    def _settings_are_the_adapters(self) -> PeftMethod:
        if self.adapter_path is None:
            return self
        for name, field in type(self).model_fields.items():
            if name in ("name", "adapter_path", "quantization"):
                continue
            value = getattr(self, name)
            if value != field.default:
                raise ValueError(
                    f"{name} is {value!r}, but the adapter in adapter_path has its own; expected no {name}"
                )
        return self

    @abstractmethod
    def peft_config(self, model: Any, new: list[str], total_steps: int, **common: Any) -> Any:
        """Return PEFT's configuration of an adapter beside ``new`` modules, which are trained whole."""

    @override
    def apply(
        self,
        model: Any,
        *,
        peft_task_type: str,
        new_head: str | None,
        total_steps: int,
        activation_dtype: torch.dtype,
        kernels: Kernels,
    ) -> Any:
        """Return PEFT's model around a transformers model; see :class:`Adaptation`."""
        import fangyan.device  # noqa: F401  (before PEFT, which imports DeepSpeed)
        from fangyan.adaptation.fused_lora import use_fused_lora
        from fangyan.adaptation.quantization import quantize
        from fangyan.models.loading import cast_weights
        from fangyan.models.structure import new_modules, try_forward
        from fangyan.models.vocabulary import use_merged_tokens

        new = new_modules(model, new_head)
        import peft
        import torch

        if self.adapter_path is not None:
            self._check_base(model, new, self.adapter_path)
        if self.base_quantization == "nf4":
            quantize(model, new, activation_dtype)
        # DoRA's magnitudes are norms of the weights.
        cast_weights(model, torch.float32 if self.uses_dora else activation_dtype)
        with self._refusing(model), without_peft_warnings():
            if self.adapter_path is not None:
                adapted = self._load(model, self.adapter_path)
            else:
                config = self.peft_config(model, new, total_steps, task_type=peft_task_type)
                adapted = peft.get_peft_model(model, config)
            cast_weights(adapted, activation_dtype)
            use_merged_tokens(adapted)
            if kernels == "auto":
                use_fused_lora(adapted)
            # With gradients: bitsandbytes' layers with a bias fail there alone, where no input has one.
            try_forward(adapted, gradients=True)
        return adapted

    @contextmanager
    def _refusing(self, model: Any) -> Iterator[None]:
        """Say in one sentence that PEFT cannot put the adapter on a model, or compute it there."""
        name = type(model).__name__
        try:
            yield
        except (RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            on = " on 4-bit weights" if self.base_quantization else ""
            other = "full" if self.name == "lora" else "lora"
            raise UserError(
                f"adaptation.name: {self.name}{on} cannot compute {name} ({reason}), expected {other}"
            ) from error

    def _check_base(self, model: Any, new: list[str], folder: str) -> None:
        """Refuse an adapter that a run has trained on other weights or labels than this model's."""
        from fangyan.models.structure import fingerprint

        path = Path(folder) / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            base = config.get("fangyan", {}).get("base")
            mark = None if base is None else base["fingerprint"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{path}: damaged, expected what fangyan writes beside an adapter") from None
        if base is None:  # an adapter from elsewhere does not say
            return
        if mark != fingerprint(model, new):
            raise UserError(
                f"adaptation.adapter_path: {folder} was trained on a model with other weights, expected "
                "model.path to be that model"
            )
        labels = {str(i): label for i, label in model.config.id2label.items()}
        if new and config.get("id2label") != labels:
            raise UserError(
                f"adaptation.adapter_path: {folder} has other labels than the task, expected "
                f"{', '.join(list(labels.values())[:8])}"
            )

    def _load(self, model: Any, folder: str) -> Any:
        """Load an existing adapter for further training."""
        import peft

        from fangyan.models.files import reading

        try:
            with reading("adapter_config.json"):
                config = peft.PeftConfig.from_pretrained(folder)
            with reading("adapter_model.safetensors, adapter_model.bin"):
                adapted = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
        except ValueError as error:
            reason = str(error)[:300]
            raise UserError(
                f"adaptation.adapter_path: no adapter for this model can be loaded from {folder!r}: {reason}"
            ) from None
        if config.peft_type.value != self.peft_type or getattr(config, "use_dora", False) != self.uses_dora:
            raise UserError(
                f"adaptation.name: {self.name}, but {folder} holds an adapter of type "
                f"{config.peft_type.value}{' with DoRA' if getattr(config, 'use_dora', False) else ''}"
            )
        return adapted


class TargetedMethod(PeftMethod, ABC):
    """A method that puts its adapter on chosen linear layers."""

    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear", description="Linear layers that get an adapter; or the last parts of their names."
    )

    def target_modules(self, model: Any, new: list[str]) -> list[str]:
        """Return the full names of the linear layers that get an adapter: by type, never a head.

        Of a composite model they are those of the part that reads text.

        Raises:
            UserError: if a target names no layer.
        """
        from fangyan.models.structure import linear_layers, text_part

        text = set(text_part(model).modules())
        linears = [name for name, module in linear_layers(model, new).items() if module in text]
        if self.targets == "all-linear":
            return linears
        for target in self.targets:
            if not any(_ends(name, target) for name in linears):
                endings = sorted({name.rpartition(".")[2] for name in linears})
                raise UserError(
                    f"adaptation.targets: {type(model).__name__} has no linear layer {target!r}, expected "
                    f"all-linear or some of {', '.join(endings)}"
                )
        return [name for name in linears if any(_ends(name, target) for target in self.targets)]


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """Keep PEFT from warning of what nobody can change."""
    with warnings.catch_warnings():
        # It asks transformers for an attribute by a name that transformers has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        # It finds by itself that GPT-2's weights are transposed.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        # It takes the ranks of AdaLoRA, under the names of parameters, for LoRA's, and finds no such layers;
        # and no layers of the experts that get no adapter.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
        yield


def trained_whole(new: list[str]) -> dict[str, list[str]]:
    """Return PEFT's argument for modules that are trained whole."""
    return {"modules_to_save": new} if new else {}


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
