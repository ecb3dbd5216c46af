"""Fused kernels for adapting language models. Knows torch; knows nothing of the trainer."""

from typing import TYPE_CHECKING, Any

import torch  # noqa: F401  (before _C: the extension needs libtorch loaded)

from fangyan_kernels import ops  # noqa: F401  (registers the operators)
from fangyan_kernels.linear_cross_entropy import (
    Statistics,
    linear_cross_entropy,
    linear_cross_entropy_with_statistics,
)
from fangyan_kernels.lora_linear import lora_linear
from fangyan_kernels.varlen_attention import varlen_attention

if TYPE_CHECKING:
    from fangyan_kernels.optim8bit import Adam8bit, AdamW8bit, AdEMAMix8bit, Lion8bit

__version__ = "0.1.0"

__all__ = [
    "AdEMAMix8bit",
    "Adam8bit",
    "AdamW8bit",
    "Lion8bit",
    "Statistics",
    "linear_cross_entropy",
    "linear_cross_entropy_with_statistics",
    "lora_linear",
    "varlen_attention",
]


def __getattr__(name: str) -> Any:
    # bitsandbytes takes 2.6 seconds to import, and is optional: only a use of the optimizers needs it.
    if name in __all__:
        from fangyan_kernels import optim8bit

        return getattr(optim8bit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
