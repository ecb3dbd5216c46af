"""Full fine-tuning, less what is frozen by module type: embedding tables, and numbered layers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field
from typing_extensions import override

from fangyan.adaptation.adaptation import Adaptation
from fangyan.config import short
from fangyan.errors import UserError

if TYPE_CHECKING:
    import torch


class Full(Adaptation):
    """Train every weight that is not frozen below."""

    name: Literal["full"] = "full"
    trains_base_weights: ClassVar[bool] = True
    supports_new_tokens: ClassVar[bool] = True

    freeze_embeddings: bool = Field(False, description="Leave every embedding table as it is.")
    freeze_layers: Annotated[int, Field(lt=1_000_000)] | str | None = Field(
        None, description="Layers to leave as they are: 3, 0-3, or 0,2,4."
    )

    @pydantic.field_validator("freeze_layers")
    @classmethod
    def _check_layers(cls, value: int | str | None) -> int | str | None:
        if value is not None:
            parse_layers(value)
        return value

    @override
    def apply(self, model: Any, *, new_head: str | None, activation_dtype: torch.dtype, **_: Any) -> Any:
        """Freeze what the recipe says, and what reads something else than text; see :class:`Adaptation`."""
        from torch import nn

        from fangyan.models.loading import cast_weights
        from fangyan.models.structure import text_part

        cast_weights(model, activation_dtype)
        # Of a composite model: weight decay would shrink what no text reaches.
        head = model.get_output_embeddings() if new_head is None else model.get_submodule(new_head)
        learned = {id(parameter) for part in (text_part(model), head) for parameter in part.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in learned:
                parameter.requires_grad_(False)
        chosen: list[Any] = []
        if self.freeze_embeddings:
            chosen += [module for module in model.modules() if isinstance(module, nn.Embedding)]
        if self.freeze_layers is not None:
            chosen += _layers(model, parse_layers(self.freeze_layers))
        for module in chosen:
            for parameter in module.parameters():
                parameter.requires_grad_(False)
        return model


def _layers(model: Any, spans: list[range]) -> list[Any]:
    from fangyan.models.structure import encoder_layers

    layers = encoder_layers(model, "adaptation.freeze_layers")
    for span in spans:
        if span[-1] >= len(layers):
            raise UserError(
                f"adaptation.freeze_layers: layer {span[-1]}, but the model has layers 0-{len(layers) - 1}"
            )
    return [layers[i] for span in spans for i in span]


def parse_layers(layers: int | str) -> list[range]:
    """Return the ranges of layers that ``3``, ``0-3`` or ``0,2,4`` name.

    Raises:
        ValueError: for anything else.
    """
    ranges: list[range] = []
    for part in str(layers).split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6}))?\s*", part)
        if not match:
            raise ValueError(f"layers is {short(layers)}, expected numbers such as 3, 0-3 or 0,2,4")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"layers is {short(layers)}, its range {part.strip()} runs backwards")
        ranges.append(range(first, last + 1))
    return ranges
