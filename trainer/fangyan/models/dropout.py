"""Dropout whose random numbers cost an eighth: one byte per element in place of one draw.

On a CPU, drawing the mask is most of dropout's time, and dropout was a tenth of a small encoder's
step. Eight elements share one 64-bit draw of the generator, which also makes the layer follow
``torch.manual_seed`` like PyTorch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ByteDropout(nn.Dropout):
    """Inverted dropout (Srivastava et al. 2014) with the rate rounded to a 256th.

    The kept elements are scaled by the rounded rate's own factor: the expectation is exact.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with a fraction ``p`` of its elements zeroed, in training."""
        threshold = round(self.p * 256)
        if not self.training or threshold == 0:
            return input
        count = input.numel()
        words = torch.empty((count + 7) // 8, dtype=torch.int64, device=input.device)
        # Without bounds random_() leaves the sign bit 0, and with it half of every eighth byte.
        words.random_(-(2**63), None)
        kept = words.view(torch.uint8)[:count].view(input.shape) >= threshold
        scale = 256 / (256 - threshold) if threshold < 256 else 0.0
        return input * (kept * scale).to(input.dtype)


def use_byte_dropout(model: nn.Module) -> None:
    """Replace every ``nn.Dropout`` of the model, by type."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, ByteDropout(child.p))
