"""What a run says of its time at its end, and what would make it faster or smaller.

A rule says something where it holds for the run that has just been measured, and nothing otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch
from fangyan_kernels.capability import bfloat16_missing
from torch import nn

from fangyan.device import device, on_gpu
from fangyan.models.structure import num_parameters
from fangyan.recipe import Recipe
from fangyan.terminal import duration
from fangyan.training.engine import has_fast_bfloat16

if TYPE_CHECKING:
    from fangyan.models.packed import PackedModel
    from fangyan.training.clock import Clock
    from fangyan.training.trainer import Trainer

# Seconds that a run has taken at least: of a shorter one nobody wants it to be faster.
_LEAST = 60.0
# Sentences at most.
_MOST = 3
# bytes of a weight in 4 bits, with its part of the scales, of which there are two levels.
_NF4 = 0.516


@dataclass(frozen=True)
class Facts:
    """What was measured of a run, and what its machine has.

    Attributes:
        recipe: of the run.
        clock: of this process's part of it.
        total: seconds of that.
        padding: share of what the steps computed that was padding.
        batch: sub-words of a micro-batch, on average.
        dev: examples of dev that were scored, each as often as it was.
        others: examples of all other splits, in the same way.
        peak: bytes of memory that this rank has taken at most.
        memory: bytes that it may take: of its GPU, or its share of the machine's.
        gpu: whether it has a GPU.
        half: the precision of 16 bits that this machine computes in, if it is faster than fp32.
        states: bytes of optimizer states of this rank.
        frozen: elements of frozen linear layers' weights that nf4 would pack.
        frozen_bytes: of these.
    """

    recipe: Recipe
    clock: Clock
    total: float
    padding: float = 0.0
    batch: float = 0.0
    dev: int = 0
    others: int = 0
    peak: float = 0.0
    memory: float = 1.0
    gpu: bool = False
    half: str | None = None
    states: float = 0.0
    frozen: int = 0
    frozen_bytes: int = 0

    def share(self, part: str) -> float:
        """Return the share of a part of the run in its time."""
        return self.clock.seconds(part) / self.total

    @property
    def waiting(self) -> float:
        """Return the share of the making of batches in the time of the steps."""
        return self.clock.seconds("data") / (self.clock.seconds("steps") or 1.0)


def closing_words(trainer: Trainer, peak: float) -> list[str]:
    """Return what is worth saying of a run that is over, three sentences at most; often there are none.

    It comes after the export, and so an error in it is one of the sentences and not the run's.

    Args:
        trainer: of the run.
        peak: bytes of memory that its ranks have taken at most.
    """
    try:
        return advise(facts(trainer, peak))
    except Exception as error:
        return [f"what would make the run faster is not known: {type(error).__name__}: {error}"]


def advise(found: Facts) -> list[str]:
    """Return the sentences on a run."""
    if found.total < _LEAST:
        return []
    advice = [sentence for rule in RULES if (sentence := rule(found)) is not None]
    times = time_sentence(found)
    return [*([times] if times else []), *advice][:_MOST]


def time_sentence(found: Facts) -> str | None:
    """Say where the time went, if a fifth went into anything but steps, or was lost in them."""
    shares = {part: found.share(part) for part in ("steps", "evaluation", "start-up")}
    shares["checkpoints"] = found.share("checkpoint")
    lost = {"padding": found.padding, "waiting for batches": found.waiting}
    if shares["steps"] >= 0.8 and max(lost.values()) < 0.2:
        return None
    shares["export and all else"] = 1.0 - sum(shares.values())
    spent = ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.01)
    within = " and ".join(f"{share:.0%} {name}" for name, share in lost.items() if share >= 0.05)
    return f"time: {duration(found.total)}, of which {spent}{f'; of the steps, {within}' if within else ''}"


def packing(found: Facts) -> str | None:
    """Advise to pack where padding costs."""
    recipe = found.recipe
    if found.padding < 0.2 or recipe.train.packing or not recipe.adaptation.supports_packing:
        return None
    return f"train.packing=true lays sequences side by side: {found.padding:.0%} of the steps is padding now"


def precision(found: Facts) -> str | None:
    """Advise 16 bits where the machine computes in them faster."""
    recipe = found.recipe
    if recipe.engine.precision != "fp32" or found.half is None or found.share("steps") < 0.5:
        return None
    if recipe.model.is_scratch or (found.half == "fp16" and recipe.adaptation.reads_gradients):
        return None
    what = "GPU" if found.gpu else "processor"
    return f"engine.precision={found.half} makes steps faster: this {what} multiplies in it"


def evaluation(found: Facts) -> str | None:
    """Advise a smaller dev split where scoring it costs."""
    if found.share("evaluation") < 0.3 or found.dev < found.others:
        return None
    return f"a smaller data.dev saves time: its evaluation took {found.share('evaluation'):.0%} of the run"


def checkpoints(found: Facts) -> str | None:
    """Advise fewer checkpoints where those between the epochs' ends cost."""
    part = "checkpoints on the way"
    if found.share(part) < 0.1 or found.total / found.clock.times(part) > 900.0:
        return None
    return (
        f"train.checkpoint_every=15min writes fewer: {found.clock.times(part):,} checkpoints on the way took "
        f"{found.share(part):.0%} of the run"
    )


def batch_size(found: Facts) -> str | None:
    """Advise larger micro-batches where a GPU has hardly anything to do."""
    train = found.recipe.train
    if not found.gpu or found.batch > 4096 or found.peak > 0.25 * found.memory:
        return None
    now = f"{found.batch:,.0f} sub-words at a time take {found.peak / found.memory:.0%} of the GPU's memory"
    if train.gradient_accumulation_steps > 1:
        return f"train.gradient_accumulation_steps=1 gives the GPU more to do in the same steps: {now}"
    tokens = 4 * train.batch_tokens
    return f"train.batch_tokens={tokens} gives the GPU more to do, with another optimizer.lr: {now}"


def states(found: Facts) -> str | None:
    """Advise 8-bit states where memory is scarce, and they are a part of it."""
    is_scarce = found.peak > 0.8 * found.memory and found.states > 0.1 * found.peak
    if not is_scarce or found.recipe.optimizer.name != "adamw" or found.recipe.engine.offload == "optimizer":
        return None
    return (
        f"optimizer.name=adamw8bit takes {_gigabytes(0.75 * found.states)} less: the run took "
        f"{_gigabytes(found.peak)} of {_gigabytes(found.memory)}"
    )


def frozen(found: Facts) -> str | None:
    """Advise 4 bits for frozen weights that are large."""
    adaptation = found.recipe.adaptation
    is_large = found.frozen_bytes > 1e9 and found.frozen_bytes > 0.3 * found.peak
    if not is_large or adaptation.base_quantization or not hasattr(adaptation, "quantization"):
        return None
    if found.recipe.engine.zero_stage == 3:  # which takes them apart
        return None
    return (
        f"adaptation.quantization=nf4 keeps frozen weights of {_gigabytes(found.frozen_bytes)} in "
        f"{_gigabytes(_NF4 * found.frozen)}"
    )


# The first is what is said first: what keeps the losses as they are, and gains most.
RULES: list[Callable[[Facts], str | None]] = [
    packing,
    precision,
    states,
    frozen,
    evaluation,
    checkpoints,
    batch_size,
]


def facts(trainer: Trainer, peak: float) -> Facts:
    """Return what is known of a run that is over; see :func:`closing_words`."""
    recipe, clock = trainer.recipe, trainer.clock
    sizes = {name: len(examples) for name, examples in trainer.splits.items()}
    sizes |= {f"retain/{name}": len(examples) for name, examples in trainer.retained.items()}
    others = sum(size for name, size in sizes.items() if name not in ("train", "dev"))
    trained = sum(num_parameters(p) for p in trainer.model.parameters() if p.requires_grad)
    width = 1 if recipe.optimizer.has_8bit_states else 4
    shares = trainer.state.ranks if recipe.engine.zero_stage else 1
    linear = frozen_linear(trainer.model)
    return Facts(
        recipe,
        clock,
        clock.total,
        padding=1.0 - clock.tokens / (clock.places or 1) if trainer.model.layout != "unpadded" else 0.0,
        batch=clock.tokens / (clock.micro_batches or 1),
        dev=sizes["dev"] * (trainer.state.epoch + 2),
        others=others * 2,
        peak=peak,
        memory=_memory(),
        gpu=on_gpu(),
        half=_half(),
        states=width * recipe.optimizer.states_per_parameter * trained / shares,
        frozen=sum(weight.numel() for weight in linear),
        frozen_bytes=sum(weight.nbytes for weight in linear),
    )


def frozen_linear(model: PackedModel) -> list[torch.Tensor]:
    """Return the frozen weights that nf4 would pack: of plain linear layers, but for the output's."""
    output = getattr(model.base, "get_output_embeddings", lambda: None)()
    return [
        module.weight
        for module in model.modules()
        if type(module) is nn.Linear and module is not output and not module.weight.requires_grad
    ]


def _half() -> str | None:
    if not on_gpu():
        return "bf16" if has_fast_bfloat16() else None
    return "fp16" if bfloat16_missing(device()) else "bf16"


def _memory() -> float:
    if on_gpu():
        return float(torch.cuda.get_device_properties(device()).total_memory)
    return psutil.virtual_memory().total / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
