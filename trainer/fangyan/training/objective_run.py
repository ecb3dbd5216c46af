"""What the objective of a run sees of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fangyan.objectives.objective import Run
from fangyan.training.engine import backward

if TYPE_CHECKING:
    from fangyan.training.trainer import Trainer

# Of a run folder: what the objective has estimated.
FOLDER = "objective"


def objective_run(trainer: Trainer) -> Run:
    """Return what the objective sees of a run, whose engine has the weights that it began with."""
    return Run(
        engine=trainer.engine,
        optimizer=trainer.optimizer,
        model=trainer.model,
        task=trainer.task,
        tokenizer=trainer.tokenizer,
        sequences=trainer.sequences,
        longest=trainer.longest,
        batch_tokens=trainer.recipe.train.batch_tokens,
        seed=trainer.recipe.seed,
        epochs=trainer.recipe.train.epochs,
        accumulation=trainer.accumulation,
        backward=partial(backward, trainer.engine),
        kept=trainer.folder.path / FOLDER,
        leaders=trainer.folder.checkpoints.disks.leaders,
    )
