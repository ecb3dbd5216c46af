"""A transformers model that takes packed batches and can give its loss."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fangyan.data.packing import ROW_WIDTH, Batch, block_mask, boundaries
from fangyan.errors import UserError
from fangyan.models import attention
from fangyan.models.head import Kernels, install_loss_head

Layout = Literal["rows", "varlen", "padded"]


class PackedModel(nn.Module):
    """Runs a model on batches of any layout.

    Args:
        model: a transformers model with a linear head, or PEFT's around one.
        classes: outputs of that head.
        layout: ``rows`` (short rows, block-diagonal mask), ``varlen`` (one row, variable-length
            kernel) or ``padded`` (one sequence a row).
        label_smoothing: of the loss.
        kernels: implementation of the head's loss.
    """

    def __init__(
        self,
        model: Any,
        classes: int,
        layout: Layout,
        label_smoothing: float = 0.0,
        kernels: Kernels = "auto",
    ):
        super().__init__()
        self.model = model
        self.layout = layout
        self.head = install_loss_head(model, classes, label_smoothing, kernels)
        model = self.base
        self._position_offset = position_offset(model)
        self._causal = bool(getattr(model.config, "is_decoder", False)) or _is_causal(model)
        parameters = inspect.signature(model.forward).parameters
        if layout != "padded" and "position_ids" not in parameters:
            raise UserError(
                f"train.packing: {type(model).__name__} takes no position_ids, so sequences cannot share "
                "a row; expected train.packing=false"
            )
        if layout != "padded":
            wanted = attention.NAME if layout == "varlen" else "sdpa"
            try:
                model.set_attn_implementation(wanted)
            except ValueError as error:
                if layout == "varlen":  # no mask is given there: plain attention would mix the sequences
                    raise UserError(
                        f"train.packing: {type(model).__name__} cannot take the variable-length attention "
                        f"({' '.join(str(error).split())[:120]}); expected train.packing=false"
                    ) from None
                wanted = "eager"  # Gemma 2 caps its attention's logits; the same mask keeps sequences apart
                model.set_attn_implementation(wanted)
            if model.config._attn_implementation != wanted:
                raise UserError(
                    f"train.packing: {type(model).__name__} has its own attention, which cannot keep packed "
                    "sequences apart; expected train.packing=false"
                )

    @property
    def base(self) -> Any:
        """The transformers model itself."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def use_gradient_checkpointing(self) -> None:
        """Layers keep their input alone; what is in them is computed again in the backward."""
        base = self.base
        enable = getattr(base, "activation_checkpointing_enable", None)  # its name since transformers 5.20
        (enable or base.gradient_checkpointing_enable)({"use_reentrant": False})
        # With frozen embeddings a layer's input has no gradient, and an adapter in it would get none.
        base.enable_input_require_grads()
        if hasattr(base.config, "use_cache"):
            base.config.use_cache = False

    @property
    def row_width(self) -> int | None:
        """What :func:`fangyan.data.packing.collate` takes for this layout."""
        return {"rows": ROW_WIDTH, "varlen": None, "padded": 0}[self.layout]

    def forward(self, batch: Batch, with_loss: bool = True, divisor: float = 1.0) -> Tensor:
        """The summed loss over the batch's targets, over ``divisor``, or the logits, (R, W, C)."""
        inputs = self._inputs(batch)
        if not with_loss:
            return self.model(**inputs).logits[:, -batch.input_ids.shape[1] :]
        # Gemma caps its logits after the head: here they are a loss by then.
        config = self.base.config
        softcap = getattr(config, "final_logit_softcapping", None)
        try:
            if softcap:
                config.final_logit_softcapping = None
            with self.head.computing_loss(batch.targets, divisor, softcap=softcap):
                return self.model(**inputs).logits
        finally:
            if softcap:
                config.final_logit_softcapping = softcap

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.input_ids}
        if self._causal and hasattr(self.base.config, "use_cache"):
            inputs["use_cache"] = False
        if self.layout == "padded":
            inputs["attention_mask"] = (batch.sequence_ids > 0).long()
            return inputs
        inputs["position_ids"] = batch.position_ids + self._position_offset
        if self.layout == "rows":
            # Additive, and made once: with a bool mask every layer's attention makes its own.
            mask = block_mask(batch.sequence_ids, self._causal)
            blocked = torch.zeros(mask.shape, dtype=self.base.dtype, device=mask.device)
            inputs["attention_mask"] = blocked.masked_fill_(~mask, torch.finfo(blocked.dtype).min)
        else:
            offsets, longest = boundaries(batch.sequence_ids)
            inputs.update(
                cu_seq_lens_q=offsets, cu_seq_lens_k=offsets, max_length_q=longest, max_length_k=longest
            )
        return inputs


def _is_causal(model: nn.Module) -> bool:
    """Whether the attention layers look back only (every one says so by ``is_causal``)."""
    flags = [
        module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)
    ]
    return bool(flags) and all(flags)


def position_offset(model: nn.Module) -> int:
    """The number of a sequence's first position: RoBERTa's tables start behind their padding row."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
