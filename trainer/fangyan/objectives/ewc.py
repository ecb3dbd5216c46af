"""Elastic weight consolidation: weights stay near those that the run began with, where they matter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic
from pydantic import Field
from typing_extensions import override

from fangyan.data.formats import parse_other_data
from fangyan.data.other_data import train_of
from fangyan.errors import UserError
from fangyan.objectives.cross_entropy import LabelObjective
from fangyan.objectives.l2sp import Strength
from fangyan.objectives.objective import Prepared

if TYPE_CHECKING:
    from torch import Tensor

    from fangyan.data.splits import DataConfig
    from fangyan.data.tokenization import TokenizedSequence
    from fangyan.objectives.objective import Run


class EWC(LabelObjective):
    """Cross-entropy, with weights held where they matter for other data (EWC, Kirkpatrick et al. 2017).

    arXiv 1612.00796. How much each matters is the Fisher information of ``data``, scaled to 1 on average, so
    that ``strength`` means what it means for l2sp.
    """

    name: Literal["ewc"] = "ewc"
    holds_weights: ClassVar[bool] = True
    # The weights at the beginning, and how much they matter, in 16 bits.
    bytes_per_parameter: ClassVar[int] = 6

    data: dict[str, Any] = Field(
        ...,
        description="A section like data, whose train is not to be forgotten: such as that of the stage "
        "before.",
    )
    samples: Annotated[int, Field(ge=10, le=1_000_000)] = Field(
        1000, description="Sequences of it that are looked at."
    )
    strength: Strength = Field(
        100.0,
        description="Of the pull towards the weights at the beginning: per step, the share of the distance "
        "that is taken back is about this times the learning rate times how much a weight matters.",
    )

    @pydantic.model_validator(mode="after")
    def _data_is_right(self) -> EWC:
        try:
            self.other_data()
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    @override
    def other_data(self) -> dict[str, DataConfig]:
        """Return the data that is not to be forgotten."""
        return {"objective.data": parse_other_data(self.data, "objective.data")}

    @override
    def check(self, task: Any, has_new_head: bool) -> None:
        """Refuse a head that has nothing to forget."""
        if has_new_head:
            raise UserError(
                "objective.name: is ewc, but the model's head is new, so that nothing says which weights "
                "matter; expected a model of this task, such as a stage before, or l2sp"
            )
        if task.has_targets:
            raise UserError(
                "objective.name: ewc is for classes, found numbers, spans or several; expected l2sp"
            )

    @override
    def start(self, run: Run) -> Prepared:
        """Estimate the Fisher information, or find it again, and hold the weights."""
        from fangyan.objectives.anchor import hold

        sequences = self._sequences(run)
        importances = _kept_or_made(run, sequences)
        hold(run.engine, run.optimizer, self.strength, importances)
        return Prepared(
            [f"ewc: weights are held as {len(sequences):,} sequences of objective.data need them"]
        )

    def _sequences(self, run: Run) -> list[TokenizedSequence]:
        from fangyan.data.masking import draws

        ((place, data),) = self.other_data().items()
        examples = train_of(data, place, run.seed)
        chosen = np.random.default_rng(run.seed).permutation(len(examples))[: self.samples]
        try:
            sequences = run.task.tokenize([examples[i] for i in chosen], run.tokenizer, run.longest)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        if run.task.corrupts:
            sequences = run.task.corrupt(
                sequences, draws(run.seed, "fisher", range(len(sequences))), run.tokenizer
            )
        sequences = [s for s in sequences[: self.samples] if any(label >= 0 for label in s.labels)]
        if not sequences:
            raise UserError("objective.data: none of its train makes a sequence with labels, expected some")
        return list(sequences)


def _kept_or_made(run: Run, sequences: list[TokenizedSequence]) -> list[Tensor]:
    """Return the Fisher information of the run's files, or estimate it and keep it there. Collective."""
    import torch.distributed as dist
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    from fangyan.distributed.agreement import digest_of
    from fangyan.distributed.process_group import gathered
    from fangyan.objectives.anchor import held_vectors
    from fangyan.objectives.fisher import fisher_information
    from fangyan.objectives.kept import keep

    vectors = held_vectors(run.engine, run.optimizer)
    what = digest_of(str([(s.input_ids, s.labels) for s in sequences]))
    path = run.kept / f"fisher-{what}-rank-{dist.get_rank()}-of-{dist.get_world_size()}.safetensors"

    def read() -> list[Tensor] | None:
        try:
            found = load_file(path)
            importances = [found[str(i)].to(vector.device) for i, vector in enumerate(vectors)]
        except (OSError, KeyError, ValueError, SafetensorError):
            return None
        fits = all(own.shape == v.shape for own, v in zip(importances, vectors, strict=True))
        return importances if fits else None

    importances = read()
    if all(gathered(importances is not None)) and importances is not None:
        return importances
    importances = fisher_information(run, sequences)

    def write(partial: Path) -> None:
        save_file({str(i): own.cpu().contiguous() for i, own in enumerate(importances)}, partial)

    keep(path, write, range(dist.get_world_size()))
    return importances
