"""The recipe's sections that are about training itself."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from fangyan.config import Config, Fraction, short


class ScheduleConfig(Config):
    """The recipe's ``schedule``: the learning rate over the run."""

    decay: Literal["linear", "cosine", "constant"] = Field("linear", description="Shape after the warm-up.")
    warmup: Fraction = Field(
        0.1, description="Fraction of all steps in which the learning rate rises from 0."
    )


# A number and its unit.
_DURATION = re.compile(r"[1-9][0-9]{0,5}(s|min|h)")
_SECONDS = {"s": 1, "min": 60, "h": 3600}


class TrainConfig(Config):
    """The recipe's ``train``: epochs, batches, checkpoints."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(5, description="Passes over the training data.")
    batch_tokens: Annotated[int, Field(ge=1, le=1 << 30)] = Field(
        2048,
        description="Sub-words per optimizer step, over all ranks and accumulation steps; longer sequences "
        "are cut.",
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65_536)] = Field(
        1, description="Micro-batches per rank and optimizer step."
    )
    gradient_clipping: Annotated[float, Field(ge=0.0, le=1e6)] = Field(
        1.0, description="Largest norm of the gradient; 0 does not clip."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute a layer's activations twice instead of keeping them: less memory, slower."
    )
    packing: bool = Field(True, description="Lay whole sequences side by side; false pads, one per row.")
    token_masking: Fraction = Field(
        0.0,
        description="Fraction of labelled sub-words replaced by the mask token in training.",
    )
    metric: str = Field(
        "auto", description="Dev metric that picks the best checkpoint; auto: the task's primary one."
    )
    early_stopping: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description="Stop after so many epochs without a better dev metric."
    )
    checkpoint_every: Annotated[int, Field(ge=1, le=10**9)] | str | None = Field(
        "15min",
        description="Steps or time (90s, 15min, 2h) between checkpoints, besides those at epochs' ends.",
    )
    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1, description="Newest checkpoints kept, besides the best."
    )
    log_every: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10, description="Steps between reads of the loss."
    )
    report: bool = Field(
        True,
        description="Whether the run ends with report.html; fangyan report writes it later, too.",
    )

    @pydantic.field_validator("checkpoint_every", mode="before")
    @classmethod
    def _is_steps_or_time(cls, value: Any) -> Any:
        if isinstance(value, str) and not _DURATION.fullmatch(value):
            raise ValueError(f"found {short(value)}, expected steps, such as 200, or a time: 90s, 15min, 2h")
        return value

    def is_checkpoint_step(self, step: int) -> bool:
        """Return whether a checkpoint is due after ``step`` steps."""
        every = self.checkpoint_every
        return isinstance(every, int) and step % every == 0

    def is_checkpoint_time(self, seconds: float) -> bool:
        """Return whether a checkpoint is due so many seconds after the last."""
        every = self.checkpoint_every
        if not isinstance(every, str):
            return False
        number = every.rstrip("hmins")
        return seconds >= int(number) * _SECONDS[every.removeprefix(number)]


class SelfTrainingConfig(Config):
    """The recipe's ``self_training``: how a model learns from ``data.unlabelled``."""

    rounds: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="How often a model labels the texts for the next, which begins anew."
    )
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.9,
        description="Probability that a text's label has to have; of tokens, their geometric mean.",
    )
    balance: bool = Field(
        True,
        description="Lower the threshold for classes of which the model is less sure in general, so that "
        "they are not left out.",
    )
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5, description="Share of the sub-words of an epoch that are of texts which a model has labelled."
    )


class EngineConfig(Config):
    """The recipe's ``engine``: DeepSpeed, precision, kernels."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="What DeepSpeed ZeRO shards: 1 optimizer states, 2 and gradients, 3 and weights.",
    )
    offload: Literal["none", "optimizer"] = Field(
        "none",
        description="optimizer: its states and the weights that it steps are kept, and stepped, on the CPU; "
        "ZeRO 1 to 3.",
    )
    precision: Literal["fp32", "bf16", "fp16", "auto"] = Field(
        "fp32",
        description="Of forward and backward. fp16 scales the loss, and skips steps whose gradients "
        "overflow. auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on a CPU.",
    )
    kernels: Literal["auto", "reference"] = Field(
        "auto", description="auto: fangyan's own wherever they run. reference: plain PyTorch in their place."
    )

    @pydantic.field_validator("zero_stage", mode="before")
    @classmethod
    def _is_a_number(cls, value: object) -> object:
        if isinstance(value, bool):  # which Python takes for 1 or 0
            raise ValueError(f"zero_stage is {value}, expected 0, 1, 2 or 3")
        return value
