"""The interface of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fangyan.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from fangyan.data.packing import Batch
    from fangyan.data.splits import DataConfig
    from fangyan.data.token_store import TokenStore
    from fangyan.data.tokenization import Tokenizer
    from fangyan.models.packed import PackedModel
    from fangyan.objectives.sampling import SampledLabels


@dataclass(frozen=True)
class Run:
    """What an objective sees of a run that begins.

    Attributes:
        engine: DeepSpeed's, around the model.
        optimizer: inside it.
        model: what is trained.
        task: of the recipe, a :class:`fangyan.tasks.task.Task`.
        tokenizer: of the model.
        sequences: the training data.
        longest: most sub-words of a sequence that is trained on.
        batch_tokens: most sub-words of a step.
        seed: of the recipe.
        epochs: of the recipe.
        accumulation: micro-batches per rank and step.
        backward: of a micro-batch's loss.
        kept: folder of files that a resumed run finds again.
        leaders: ranks that write what each disk has once.
    """

    engine: Any
    optimizer: torch.optim.Optimizer
    model: PackedModel
    task: Any
    tokenizer: Tokenizer
    sequences: TokenStore
    longest: int
    batch_tokens: int
    seed: int
    epochs: int
    accumulation: int
    backward: Callable[[Tensor], None]
    kept: Path
    leaders: Sequence[int]


@dataclass(frozen=True)
class Prepared:
    """What an objective has made before the first step.

    Attributes:
        messages: for the user.
        teacher: labels that steps learn in place of some of the data's, or None.
        share: of labels that are the teacher's.
    """

    messages: Sequence[str] = ()
    teacher: SampledLabels | None = None
    share: float = 0.0


class Objective(Config, ABC):
    """The recipe's ``objective``. Each is a subclass with a ``name`` tag.

    Attributes:
        holds_weights: whether weights that were there before the run are held near their values: those of a
            new head are then in groups of their own.
        bytes_per_parameter: that it keeps for each parameter that learns.
    """

    name: str
    holds_weights: ClassVar[bool] = False
    bytes_per_parameter: ClassVar[int] = 0

    @property
    def smooths_labels(self) -> bool:
        """Return whether some of the target distribution is spread over all classes."""
        return False

    def other_data(self) -> dict[str, DataConfig]:
        """Return data that it reads besides that of the run, by the field of the recipe."""
        return {}

    def check(self, task: Any, has_new_head: bool) -> None:
        """Refuse what the objective means nothing for.

        Args:
            task: of the recipe, after :meth:`fangyan.tasks.task.Task.use_model`.
            has_new_head: whether the model's head knows nothing yet.

        Raises:
            UserError: saying what was found and what was expected.
        """

    def start(self, run: Run) -> Prepared:  # noqa: ARG002
        """Prepare for a run. Collective.

        Called before the first step, and before a checkpoint is loaded where the run resumes: weights are
        those that the run began with.
        """
        return Prepared()

    @abstractmethod
    def loss(self, model: PackedModel, batch: Batch, divisor: float) -> Tensor:
        """Return the loss of a micro-batch, ().

        Runs inside the engine's forward, where ZeRO-3 gathers weights. Evaluation does not use it: metrics
        are the task's.

        Args:
            model: in training mode.
            batch: on the model's device; it may be empty, and the loss must reach the head even so.
            divisor: labels of all ranks and gradient accumulation steps, by which a sum over this batch's
                is to be divided (and by what DeepSpeed will divide again).
        """
