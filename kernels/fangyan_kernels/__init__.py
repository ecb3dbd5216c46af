"""Fused kernels for adapting language models. Knows torch; knows nothing of the trainer."""

import torch  # noqa: F401  (before _C: the extension needs libtorch loaded)

from fangyan_kernels import ops  # noqa: F401  (registers the operators)
from fangyan_kernels.linear_cross_entropy import Statistics, linear_cross_entropy
from fangyan_kernels.lora_linear import lora_linear

__all__ = ["Statistics", "linear_cross_entropy", "lora_linear"]
