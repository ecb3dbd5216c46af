"""What both regimes of the Triton kernels share: the call's options, its divisor, its totals.

Prefixes inside kernels: p_ pointer, i_ index, o_ offset, m_ mask, b_ block.
Shape suffixes: T tokens, H hidden, C classes.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from fangyan_kernels.launching import launch

# Programs that each add up a part of the targets' weights; whoever needs the sum adds the parts.
PARTS = 64
PART_BLOCK = 1024
TOTALS = {"BLOCK": 4096, "num_warps": 4}
SCALE = {"BLOCK": 1024, "num_warps": 4}


class Flags(NamedTuple):
    """Constants of both regimes' kernels, in their order."""

    HAS_BIAS: bool
    HAS_CLASS_WEIGHT: bool
    HAS_TOKEN_WEIGHT: bool
    GIVEN: bool
    HAS_SMOOTHING: bool
    HAS_SOFTCAP: bool
    PREDICT: bool


class Call(NamedTuple):
    """The operator's arguments (see ``ops.py``), contiguous, and the parts of what it divides by."""

    input_TH: Tensor
    weight_CH: Tensor
    bias_C: Tensor | None
    target_T: Tensor
    class_weight_C: Tensor | None
    token_weight_T: Tensor | None
    parts: Tensor | None
    given: bool
    reduction: str
    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float
    predict: bool
    grad_input: bool
    grad_weight: bool
    grad_bias: bool

    @property
    def tokens(self) -> int:
        return self.input_TH.shape[0]

    @property
    def hidden(self) -> int:
        return self.input_TH.shape[1]

    @property
    def classes(self) -> int:
        return self.weight_CH.shape[0]

    @property
    def gradients(self) -> bool:
        return self.grad_input or self.grad_weight or self.grad_bias

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        """What both regimes' kernels read besides input and weight: None where it is not given."""
        return self.bias_C, self.target_T, self.class_weight_C, self.token_weight_T, self.parts

    @property
    def numbers(self) -> tuple[float, ...]:
        """Their numbers that may vary from batch to batch."""
        n_parts = 0 if self.parts is None else self.parts.numel()
        return n_parts, self.ignore_index, self.label_smoothing, self.z_loss, self.softcap

    @property
    def flags(self) -> Flags:
        return Flags(
            self.bias_C is not None,
            self.class_weight_C is not None,
            self.token_weight_T is not None,
            self.given,
            self.label_smoothing > 0.0,
            self.softcap > 0.0,
            self.predict,
        )


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors; a few under the interpreter, which runs one program after another."""
    if device.type != "cuda":
        return 3
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program can have; an H100's under the interpreter."""
    if device.type != "cuda":
        return 227 << 10
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])


def launch_options(warps: int, stages: int = 3, registers: int = 255) -> dict[str, int]:
    """For up to 8 warps. Left to itself ptxas spills a few registers to fit a block more than there is."""
    options = {"num_warps": warps, "num_stages": stages}
    return options if torch.version.hip else {**options, "maxnreg": registers}


@triton.jit
def tanh(x):
    """By its series near 0, where the quotient would cancel."""
    s = x * x
    near = x * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835)))))
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.3, near, tl.where(x < 0.0, -far, far))


@triton.jit
def token_loss(lse, gap, distance, hit, spread, class_weight_sum, z_loss):
    """A token's loss, of weight 1: gap = lse - z_target, distance = sum_c w_c (z_target - z_c)."""
    return hit * gap + spread * (class_weight_sum * gap + distance) + z_loss * lse * lse


@triton.jit
def divisor(p_parts, n_parts, GIVEN: tl.constexpr, PARTS: tl.constexpr):
    """What the loss is divided by: the sum of the parts; 1 where there is nothing to divide."""
    # A compiler goes on behind a return within an if, where the pointer would be None.
    if p_parts is None:
        total = 1.0
    else:
        i = tl.arange(0, PARTS)
        total = tl.sum(tl.load(p_parts + i, mask=i < n_parts, other=0.0), 0)
        if not GIVEN:
            total = tl.where(total == 0.0, 1.0, total)
    return total


@triton.jit(do_not_specialize=["tokens", "ignore_index"], debug=True)
def weigh_targets(
    p_target,
    p_class_weight,
    p_token_weight,
    p_parts,
    tokens,
    ignore_index,
    classes,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """parts_i = the weights of a share of the labelled targets, summed; every target is checked.

    Reads 8 bytes a token.
    """
    total = 0.0
    for o in range(tl.program_id(0) * BLOCK, tokens, BLOCK * tl.num_programs(0)):
        i_t = o + tl.arange(0, BLOCK)
        target = tl.load(p_target + i_t, mask=i_t < tokens, other=ignore_index)
        m_labelled = target != ignore_index
        tl.device_assert(
            (target >= 0) & (target < classes), "linear_cross_entropy: a target is no class", mask=m_labelled
        )
        weight = m_labelled.to(tl.float32)
        if HAS_CLASS_WEIGHT:
            weight *= tl.load(p_class_weight + target, mask=m_labelled, other=0.0)
        if HAS_TOKEN_WEIGHT:
            weight *= tl.load(p_token_weight + i_t, mask=m_labelled, other=0.0)
        total += tl.sum(weight, 0)
    tl.store(p_parts + tl.program_id(0), total)


@triton.jit(do_not_specialize=["tokens", "n_parts", "ignore_index", "max_valid"], debug=True)
def add_totals(
    p_token_loss,
    p_correct,
    p_target,
    p_parts,
    p_loss,
    p_labelled_total,
    p_correct_total,
    tokens,
    n_parts,
    ignore_index,
    max_valid,
    REDUCE: tl.constexpr,
    GIVEN: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The reduced loss and the two counts, by one program in a fixed order; 13 bytes a token."""
    loss = tl.zeros((BLOCK,), tl.float32)
    labelled = tl.zeros((BLOCK,), tl.int32)
    correct = tl.zeros((BLOCK,), tl.int32)
    for o in range(0, tokens, BLOCK):
        i_t = o + tl.arange(0, BLOCK)
        m_t = i_t < tokens
        loss += tl.load(p_token_loss + i_t, mask=m_t, other=0.0)
        correct += tl.load(p_correct + i_t, mask=m_t, other=0).to(tl.int32)
        labelled += (tl.load(p_target + i_t, mask=m_t, other=ignore_index) != ignore_index).to(tl.int32)
    if REDUCE:
        tl.store(p_loss, tl.sum(loss, 0) / divisor(p_parts, n_parts, GIVEN, PARTS))
    n_labelled = tl.sum(labelled, 0)
    # The others were lost, and the loss is wrong.
    tl.device_assert(n_labelled <= max_valid, "linear_cross_entropy: more labels than max_valid")
    tl.store(p_labelled_total, n_labelled.to(tl.int64))
    tl.store(p_correct_total, tl.sum(correct, 0).to(tl.int64))


@triton.jit(do_not_specialize=["n_first", "n_second", "n_third"])
def scale_three(p_first, p_second, p_third, p_scale, n_first, n_second, n_third, BLOCK: tl.constexpr):
    """x *= scale for three tensors; reads the scale alone where it is 1."""
    scale = tl.load(p_scale).to(tl.float32)
    if scale != 1.0:
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        start = tl.program_id(0).to(tl.int64) * BLOCK
        for o in range(start, n_first, step):
            i = o + tl.arange(0, BLOCK)
            value = tl.load(p_first + i, mask=i < n_first).to(tl.float32) * scale
            tl.store(p_first + i, value.to(p_first.dtype.element_ty), mask=i < n_first)
        for o in range(start, n_second, step):
            i = o + tl.arange(0, BLOCK)
            value = tl.load(p_second + i, mask=i < n_second).to(tl.float32) * scale
            tl.store(p_second + i, value.to(p_second.dtype.element_ty), mask=i < n_second)
        for o in range(start, n_third, step):
            i = o + tl.arange(0, BLOCK)
            value = tl.load(p_third + i, mask=i < n_third).to(tl.float32) * scale
            tl.store(p_third + i, value.to(p_third.dtype.element_ty), mask=i < n_third)


def weigh(
    target_T: Tensor,
    class_weight_C: Tensor | None,
    token_weight_T: Tensor | None,
    classes: int,
    ignore_index: int,
) -> Tensor:
    """The parts of the labelled targets' weight, (up to PARTS,); checks the targets."""
    tokens = target_T.numel()
    parts = torch.empty(
        min(PARTS, max(1, -(-tokens // PART_BLOCK))), dtype=torch.float32, device=target_T.device
    )
    launch(
        weigh_targets,
        (parts.numel(), 1),
        (target_T, class_weight_C, token_weight_T, parts),
        (tokens, ignore_index),
        (classes,),
        _weigh_options(class_weight_C is not None, token_weight_T is not None),
    )
    return parts


@cache
def _weigh_options(has_class_weight: bool, has_token_weight: bool) -> dict[str, int]:
    has = {"HAS_CLASS_WEIGHT": has_class_weight, "HAS_TOKEN_WEIGHT": has_token_weight}
    return {**has, "BLOCK": PART_BLOCK, "num_warps": 4}
