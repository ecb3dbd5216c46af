"""The operators of the library ``fangyan``: for each its schema, fake and autograd formula, one file per op.

They are the contract between Python and kernels. The CPU kernels behind them are C++ (``csrc/``, in the
extension ``_C``), the CUDA kernels Triton; LoRA linears on the CPU are PyTorch's products in another order.
"""

from __future__ import annotations

from typing import Any

import torch

from fangyan_kernels import _C  # noqa: F401  (importing it registers the CPU kernels)
from fangyan_kernels.ops import linear_cross_entropy, lora_linear, optim8bit, varlen_attention

__all__ = ["linear_cross_entropy", "lora_linear", "optim8bit", "varlen_attention"]


def _disable_autocast(name: str) -> None:
    """Keep autocast out of an operator: its products and sums are in the dtypes it was given.

    A kernel of autocast's own key costs nothing while autocast is off, and covers the backward and inference
    mode too. Public functions cast what autocast casts.
    """
    operator = getattr(torch.ops.fangyan, name).default

    def kernel(*arguments: Any) -> Any:
        with torch._C._DisableAutocast():
            return operator(*arguments)

    for key in ("AutocastCPU", "AutocastCUDA"):
        torch.library.impl(f"fangyan::{name}", key, kernel)


for _name in (
    "linear_cross_entropy",
    "lora_linear",
    "lora_linear_backward",
    "varlen_attention",
    "varlen_attention_backward",
):
    _disable_autocast(_name)
