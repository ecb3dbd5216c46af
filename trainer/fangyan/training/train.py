"""A whole run: recipe in, run folder out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fangyan.distributed.agreement import assert_agreement, digest_of
from fangyan.distributed.disks import find_disks
from fangyan.distributed.process_group import on_rank_zero, start_distributed, watching_ranks
from fangyan.distributed.signals import StopSignals, end_with_launcher
from fangyan.environment import versions
from fangyan.errors import UserError
from fangyan.recipe import Recipe, load_recipe
from fangyan.trackers.callback import Callback
from fangyan.training.checkpoint import Checkpoints
from fangyan.training.engine import choose_precision, release
from fangyan.training.following import check_trackers
from fangyan.training.on_epoch import OnEpoch, go_on
from fangyan.training.run_folder import RunFolder
from fangyan.training.trainer import Result, Trainer


def train(
    recipe: Recipe | str | Path,
    resume: str | Path | None = None,
    profile: bool = False,
    on_epoch: OnEpoch = go_on,
    score_test: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Run a recipe: evaluate, train, evaluate, export.

    Args:
        recipe: a recipe, the path of one, or the name of one that comes with the package.
        resume: ``auto`` resumes from the newest whole checkpoint of the run folder, and starts afresh if
            there is none; or a checkpoint's path.
        profile: write a Chrome trace of a few steps into the run folder, and say what they cost.
        on_epoch: follows the run, and may end it.
        score_test: false leaves the test split alone, which is held out all the same.
        callbacks: follow the run as the recipe's trackers do.

    Raises:
        UserError: with one sentence on what to change.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    if recipe.data.unlabelled is not None:
        return _self_train(recipe, resume, profile or on_epoch is not go_on, callbacks)
    start_distributed()
    end_with_launcher()
    with StopSignals() as signals, watching_ranks():
        recipe = choose_precision(recipe)
        on_rank_zero(lambda: check_trackers(recipe))
        assert_agreement({"recipe": digest_of(recipe.to_yaml()), "--resume": str(resume), **versions()})
        with _run_folder(recipe) as folder:
            # Before anything is loaded: what cannot be resumed is known at once.
            start = folder.find_start(recipe, resume)
            if start.checkpoint is None:
                _check_inputs(recipe)
            trainer = Trainer(recipe)
            if not score_test:
                trainer.splits.pop("test", None)
            assert_agreement(trainer.digests())
            trainer.start_engine(start.state)
            try:
                return trainer.fit(folder, start, profile, signals, on_epoch, callbacks)
            finally:
                release(trainer.engine)


def _self_train(
    recipe: Recipe, resume: str | Path | None, is_single: bool, callbacks: Sequence[Callback]
) -> Result:
    """Run a recipe with texts that the model labels by itself: several runs."""
    from fangyan.training.self_training import self_train  # which runs train itself

    if str(resume or "auto") != "auto" or is_single:
        raise UserError(
            "data.unlabelled: makes several runs, which resume by themselves; expected no --resume but auto, "
            "no --profile, and tune without it"
        )
    return self_train(recipe, callbacks)


def _run_folder(recipe: Recipe) -> RunFolder:
    checkpoints = Checkpoints(
        recipe.folder / "checkpoints",
        recipe.train.keep_checkpoints,
        trained_only=not recipe.adaptation.trains_base_weights,
        disks=find_disks(recipe.folder),
    )
    return RunFolder(recipe.folder, checkpoints)


def _check_inputs(recipe: Recipe) -> None:
    """Refuse inputs in the run folder, which a new run moves out of its way."""
    paths = {
        "model.path": recipe.model.path,
        "adaptation.adapter_path": getattr(recipe.adaptation, "adapter_path", None),
    }
    for field, path in paths.items():
        if path is None or not Path(path).exists():  # a name, of the package's or of the hub's
            continue
        if Path(path).resolve().is_relative_to(recipe.folder.resolve()):
            raise UserError(f"{field}: {path} is in the run folder, expected another run_dir")
