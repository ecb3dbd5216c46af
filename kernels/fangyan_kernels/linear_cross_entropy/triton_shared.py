"""What the Triton kernels for few and for many classes have in common: options, divisor, totals.

Workspace of a call, float32: the programs' gradients of the weight, of the bias, then their totals.

Prefixes inside kernels: p_ pointer, i_ index, o_ offset, m_ mask.
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
from fangyan_kernels.ops.linear_cross_entropy import Inputs, Options

# Programs that each sum some of the targets' weights; a kernel that needs the total adds the partial sums.
NUM_PARTIALS = 64
PARTIAL_BLOCK = 1024
# A warp reads 128 bytes of a program's row; 224 programs at C = 7.
REDUCE = {"BLOCK_P": 32, "BLOCK": 32, "num_warps": 4}
TOKENS = {"BLOCK": PARTIAL_BLOCK, "num_warps": 4}
SCALE = {"BLOCK": 1024, "num_warps": 4}

# Varies from batch to batch: specialized on being 1 or a multiple of 16, a kernel would be compiled again
# for a last batch.
VARYING = ["tokens", "num_partials", "programs", "splits", "ignore_index", "max_valid"]


class Flags(NamedTuple):
    """Constants of all kernels, in their order."""

    HAS_BIAS: bool
    HAS_CLASS_WEIGHT: bool
    HAS_TOKEN_WEIGHT: bool
    HAS_DIVISOR: bool
    HAS_SMOOTHING: bool
    HAS_LOGIT_SCALE: bool
    HAS_SOFTCAP: bool
    PREDICT: bool


class Call(NamedTuple):
    """The operator's arguments, contiguous, and the partial sums of what it divides by."""

    inputs: Inputs
    options: Options
    partial_sums: Tensor | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Tokens, hidden size, classes."""
        return *self.inputs.input_TH.shape, self.inputs.weight_CH.shape[0]

    @property
    def has_divisor(self) -> bool:
        """Whether the caller named a divisor."""
        return self.inputs.divisor is not None

    @property
    def gradients(self) -> bool:
        """Whether any gradient is wanted."""
        return self.options.grad_input or self.options.grad_weight or self.options.grad_bias

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        """What every kernel reads besides input and weight: None where it is absent."""
        inputs = self.inputs
        return (
            inputs.bias_C,
            inputs.target_T,
            inputs.class_weight_C,
            inputs.token_weight_T,
            self.partial_sums,
        )

    @property
    def num_partials(self) -> int:
        """Number of partial sums."""
        return 0 if self.partial_sums is None else self.partial_sums.numel()

    @property
    def scalars(self) -> tuple[float, ...]:
        """What every kernel takes and may vary from batch to batch."""
        options = self.options
        rest = options.label_smoothing, options.z_loss, options.logit_scale, options.softcap
        return self.num_partials, options.ignore_index, *rest

    @property
    def flags(self) -> Flags:
        """The kernels' constants that follow from the call."""
        return Flags(
            self.inputs.bias_C is not None,
            self.inputs.class_weight_C is not None,
            self.inputs.token_weight_T is not None,
            self.has_divisor,
            self.options.label_smoothing > 0.0,
            self.options.logit_scale != 1.0,
            self.options.softcap > 0.0,
            self.options.predict,
        )


@cache
def processors(device: torch.device) -> int:
    """Count streaming multiprocessors; a few under the interpreter, which runs one program after another."""
    if device.type != "cuda":
        return 3
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that a program can have; an H100's under the interpreter."""
    if device.type != "cuda":
        return 227 << 10
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])


def launch_options(warps: int, stages: int = 3, registers: int = 255) -> dict[str, int]:
    """Limit registers, for up to 8 warps: ptxas would spill a few to fit one more block than there is."""
    options = {"num_warps": warps, "num_stages": stages}
    return options if torch.version.hip else {**options, "maxnreg": registers}


@triton.jit
def tanh(x):
    """Compute tanh by its series near 0, where the quotient would cancel."""
    s = x * x
    near = x * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835)))))
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.3, near, tl.where(x < 0.0, -far, far))


@triton.jit
def token_loss(
    lse, lse_minus_target, margin_sum, target_weight, smoothing_per_class, class_weight_sum, z_loss
):
    """Compute the loss of a token of weight 1.

    lse_minus_target = lse - z_target, margin_sum = sum_c w_c (z_target - z_c).
    """
    smoothing = smoothing_per_class * (class_weight_sum * lse_minus_target + margin_sum)
    return target_weight * lse_minus_target + smoothing + z_loss * lse * lse


@triton.jit
def divisor(p_partial_sums, num_partials, HAS_DIVISOR: tl.constexpr, NUM_PARTIALS: tl.constexpr):
    """Return what the loss is divided by: the sum of the partial sums; 1 where there is nothing to divide."""
    # No early return: the compiler would still compile what follows it, where the pointer is None.
    if p_partial_sums is None:
        total = 1.0
    else:
        i = tl.arange(0, NUM_PARTIALS)
        total = tl.sum(tl.load(p_partial_sums + i, mask=i < num_partials, other=0.0), 0)
        if not HAS_DIVISOR:
            total = tl.where(total == 0.0, 1.0, total)
    return total


@triton.jit(do_not_specialize=["tokens", "ignore_index"], debug=True)
def sum_target_weights_kernel(
    p_target,
    p_class_weight,
    p_token_weight,
    p_partial_sums,
    tokens,
    ignore_index,
    classes,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the weights of every P-th block of valid targets; check every target.

    Reads 8 bytes per token.
    """
    total = 0.0
    for o in range(tl.program_id(0) * BLOCK, tokens, BLOCK * tl.num_programs(0)):
        i_t = o + tl.arange(0, BLOCK)
        target = tl.load(p_target + i_t, mask=i_t < tokens, other=ignore_index)
        m_valid = target != ignore_index
        tl.device_assert(
            (target >= 0) & (target < classes), "linear_cross_entropy: a target is no class", mask=m_valid
        )
        weight = m_valid.to(tl.float32)
        if HAS_CLASS_WEIGHT:
            weight *= tl.load(p_class_weight + target, mask=m_valid, other=0.0)
        if HAS_TOKEN_WEIGHT:
            weight *= tl.load(p_token_weight + i_t, mask=m_valid, other=0.0)
        total += tl.sum(weight, 0)
    tl.store(p_partial_sums + tl.program_id(0), total)


@triton.jit
def store_totals(p_totals, loss, valid, correct, invalid):
    """Store a program's row of totals: counts stay below 2^24, which float32 holds exactly."""
    p_row = p_totals + 4 * tl.program_id(0)
    tl.store(p_row, tl.sum(loss, 0))
    tl.store(p_row + 1, tl.sum(valid, 0).to(tl.float32))
    tl.store(p_row + 2, tl.sum(correct, 0).to(tl.float32))
    tl.store(p_row + 3, tl.sum(invalid, 0).to(tl.float32))


@triton.jit(do_not_specialize=VARYING, debug=True)
def reduce_partials(
    p_workspace,
    p_partial_sums,
    p_grad_weight,
    p_grad_bias,
    p_loss,
    p_num_valid,
    p_num_correct,
    splits,
    programs,
    num_partials,
    max_valid,
    hidden,
    classes,
    width,
    REDUCE: tl.constexpr,
    HAS_DIVISOR: tl.constexpr,
    GRAD_WEIGHT: tl.constexpr,
    GRAD_BIAS: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum over the programs in a fixed order: each program here a few columns, the last one the totals.

    ``width`` is that of a row of the workspace's weight gradients. Reads 4 S C H bytes.
    """
    lane_p, lane = tl.arange(0, BLOCK_P)[:, None], tl.arange(0, BLOCK)
    if tl.program_id(0) < tl.num_programs(0) - 1:
        if GRAD_WEIGHT:
            i = tl.program_id(0) * BLOCK + lane
            total = tl.zeros((BLOCK_P, BLOCK), tl.float32)
            for o in range(0, splits, BLOCK_P):
                m_own = (o + lane_p < splits) & (i < classes * width)[None, :]
                p_own = p_workspace + (o + lane_p) * classes * width + i[None, :]
                total += tl.load(p_own, mask=m_own & (i % width < hidden)[None, :], other=0.0)
            value = tl.sum(total, 0).to(p_grad_weight.dtype.element_ty)
            m_weight = (i < classes * width) & (i % width < hidden)
            tl.store(p_grad_weight + i // width * hidden + i % width, value, mask=m_weight)
    else:
        p_own = p_workspace
        if GRAD_WEIGHT:
            p_own += splits * classes * width
        if GRAD_BIAS:
            total = tl.zeros((BLOCK_P, BLOCK), tl.float32)
            for o in range(0, programs, BLOCK_P):
                m_own = (o + lane_p < programs) & (lane < classes)[None, :]
                total += tl.load(p_own + (o + lane_p) * classes + lane[None, :], mask=m_own, other=0.0)
            value = tl.sum(total, 0).to(p_grad_bias.dtype.element_ty)
            tl.store(p_grad_bias + lane, value, mask=lane < classes)
            p_own += programs * classes
        lane_4 = tl.arange(0, 4)[None, :]
        losses = tl.zeros((BLOCK_P, 4), tl.float32)
        counts = tl.zeros((BLOCK_P, 4), tl.int32)
        for o in range(0, programs, BLOCK_P):
            own = tl.load(p_own + (o + lane_p) * 4 + lane_4, mask=o + lane_p < programs, other=0.0)
            losses += tl.where(lane_4 == 0, own, 0.0)
            counts += tl.where(lane_4 == 0, 0.0, own).to(tl.int32)
        num_valid = tl.sum(tl.where(lane_4 == 1, counts, 0))
        invalid = tl.sum(tl.where(lane_4 == 3, counts, 0))
        tl.device_assert(invalid == 0, "linear_cross_entropy: a target is no class")
        tl.device_assert(num_valid <= max_valid, "linear_cross_entropy: more valid targets than max_valid")
        if REDUCE:
            tl.store(
                p_loss, tl.sum(losses) / divisor(p_partial_sums, num_partials, HAS_DIVISOR, NUM_PARTIALS)
            )
        tl.store(p_num_valid, num_valid.to(tl.int64))
        tl.store(p_num_correct, tl.sum(tl.where(lane_4 == 2, counts, 0)).to(tl.int64))


@triton.jit(do_not_specialize=VARYING)
def sum_tokens(p_token_loss, p_correct, p_target, p_workspace, tokens, ignore_index, BLOCK: tl.constexpr):
    """Sum the loss and the two counts of every P-th block of tokens, for ``reduce_partials``.

    Reads 13 bytes per token.
    """
    loss = tl.zeros((BLOCK,), tl.float32)
    valid = tl.zeros((BLOCK,), tl.int32)
    correct = tl.zeros((BLOCK,), tl.int32)
    for o in range(tl.program_id(0) * BLOCK, tokens, BLOCK * tl.num_programs(0)):
        i_t = o + tl.arange(0, BLOCK)
        m_t = i_t < tokens
        loss += tl.load(p_token_loss + i_t, mask=m_t, other=0.0)
        correct += tl.load(p_correct + i_t, mask=m_t, other=0).to(tl.int32)
        valid += (tl.load(p_target + i_t, mask=m_t, other=ignore_index) != ignore_index).to(tl.int32)
    # Targets have been checked: none is invalid.
    store_totals(p_workspace, loss, valid, correct, tl.zeros((BLOCK,), tl.int32))


@triton.jit
def scale_one(p, n, scale, start, step, BLOCK: tl.constexpr):
    """Multiply a tensor of n elements by a scale in place, every P-th block of them."""
    for o in range(start, n, step):
        i = o + tl.arange(0, BLOCK)
        value = tl.load(p + i, mask=i < n).to(tl.float32) * scale
        tl.store(p + i, value.to(p.dtype.element_ty), mask=i < n)


@triton.jit(do_not_specialize=["n_first", "n_second", "n_third"])
def scale_gradients(p_first, p_second, p_third, p_scale, n_first, n_second, n_third, BLOCK: tl.constexpr):
    """Multiply three tensors by a scale in place; read the scale alone where it is 1."""
    scale = tl.load(p_scale).to(tl.float32)
    if scale != 1.0:
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        start = tl.program_id(0).to(tl.int64) * BLOCK
        scale_one(p_first, n_first, scale, start, step, BLOCK)
        scale_one(p_second, n_second, scale, start, step, BLOCK)
        scale_one(p_third, n_third, scale, start, step, BLOCK)


def _programs(tokens: int) -> int:
    return min(NUM_PARTIALS, max(1, -(-tokens // PARTIAL_BLOCK)))


def sum_target_weights(inputs: Inputs, ignore_index: int) -> Tensor:
    """Sum the valid targets' weights into up to NUM_PARTIALS partial sums; check the targets."""
    tokens, device = inputs.target_T.numel(), inputs.target_T.device
    programs = _programs(tokens)
    partial_sums = torch.empty(programs, dtype=torch.float32, device=device)
    class_weight_C, token_weight_T = inputs.class_weight_C, inputs.token_weight_T
    launch(
        sum_target_weights_kernel,
        (programs, 1),
        (inputs.target_T, class_weight_C, token_weight_T, partial_sums),
        (tokens, ignore_index),
        (inputs.weight_CH.shape[0],),
        _weight_options(class_weight_C is not None, token_weight_T is not None),
    )
    return partial_sums


@cache
def _weight_options(has_class_weight: bool, has_token_weight: bool) -> dict[str, int]:
    has = {"HAS_CLASS_WEIGHT": has_class_weight, "HAS_TOKEN_WEIGHT": has_token_weight}
    return {**has, "BLOCK": PARTIAL_BLOCK, "num_warps": 4}


def total_tokens(loss_T: Tensor, correct_T: Tensor, target_T: Tensor, ignore_index: int) -> Tensor:
    """Sum losses and counts of tokens into a workspace for ``reduce_partials``, (programs, 4), float32."""
    tokens = target_T.numel()
    programs = _programs(tokens)
    workspace = torch.empty((programs, 4), dtype=torch.float32, device=target_T.device)
    launch(
        sum_tokens,
        (programs, 1),
        (loss_T, correct_T, target_T, workspace),
        (tokens, ignore_index),
        (),
        TOKENS,
    )
    return workspace


@cache
def reduce_options(
    reduces: bool, has_divisor: bool, grad_weight: bool = False, grad_bias: bool = False
) -> dict[str, int]:
    """Return the constants and launch options of ``reduce_partials``, the same object for the same call."""
    flags = {"REDUCE": reduces, "HAS_DIVISOR": has_divisor, "GRAD_WEIGHT": grad_weight}
    return {**flags, "GRAD_BIAS": grad_bias, "NUM_PARTIALS": NUM_PARTIALS, **REDUCE}
