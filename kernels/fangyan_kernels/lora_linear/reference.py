"""Linear layers with low-rank adapters in plain PyTorch: owns the meaning, on any device and dtype.

For each projection p of one input x, its weight frozen:

    y_p = x W_p' + bias_p + s_p (D * x) A_p' B_p'

with D = 0 where an element is dropped, else 1 / (1 - dropout). LoRA: Hu et al. 2021 (arXiv 2106.09685);
rsLoRA is another s: Kalajdzievski 2023 (arXiv 2312.03732).

Shape suffixes: T tokens, K in, N out, R rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fangyan_kernels.lora_linear.base_weights import BaseWeights
from fangyan_kernels.ops.lora_linear import Layers

_WORD = 0xFFFFFFFF


def lora_linear(layers: Layers) -> list[Tensor]:
    """Compute the outputs of the operator ``fangyan::lora_linear``, which autograd differentiates."""
    weights = BaseWeights(layers)
    input_TK, seed = layers.input_TK, layers.seed
    dropped_TK = input_TK if seed is None else apply_dropout(input_TK, layers.dropout, seed)
    outputs = []
    for i, (a_RK, b_NR) in enumerate(zip(layers.a_RK, layers.b_NR, strict=True)):
        bias_N = layers.biases_N[i] if layers.biases_N else None
        output_TN = F.linear(input_TK, weights.dense(i), bias_N)
        outputs.append(output_TN + layers.scalings[i] * F.linear(F.linear(dropped_TK, a_RK), b_NR))
    return outputs


def apply_dropout(input_TK: Tensor, dropout: float, seed: Tensor) -> Tensor:
    """Return D * x."""
    keep_TK = keep_mask(seed, len(input_TK), input_TK.shape[1], dropout).to(input_TK.device)
    return input_TK * (keep_TK / (1.0 - dropout)).to(input_TK.dtype)


def keep_mask(seed: Tensor, rows: int, columns: int, dropout: float) -> Tensor:
    """Return which elements are kept, (rows, columns), bool: a function of the seed and their position alone.

    So no mask is stored, and every implementation drops the same elements. An element's 32 bits are a
    hash of its column and its row's key; each step of the key hashes one half of the seed.

    Args:
        seed: (), int64.
        rows: of the mask.
        columns: of the mask.
        dropout: probability that an element is dropped.
    """
    seed_lo, seed_hi = seed & _WORD, (seed >> 32) & _WORD
    row_T = torch.arange(rows, device=seed.device)
    key_T = _hash(_hash((row_T + seed_lo) & _WORD) ^ seed_hi)
    bits_TK = _hash(torch.arange(columns, device=seed.device) ^ key_T[:, None])
    return bits_TK >= threshold(dropout)


def threshold(dropout: float) -> int:
    """Return the number below which an element's bits drop it."""
    return min(round(dropout * 2**32), _WORD)


def _hash(word: Tensor) -> Tensor:
    """Permute 32-bit words without visible bias ("lowbias32" of Wellons, "Hash Prospector", 2018)."""
    word = word ^ (word >> 16)
    word = (word * 0x7FEB352D) & _WORD
    word = word ^ (word >> 15)
    word = (word * 0x846CA68B) & _WORD
    return word ^ (word >> 16)
