"""Distillation: the model also learns what it would have said before the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.errors import UserError
from fangyan.objectives.cross_entropy import LabelObjective
from fangyan.objectives.objective import Prepared

if TYPE_CHECKING:
    from fangyan.objectives.objective import Run

# Labels that are drawn for each place, at most: of more epochs, some see the same.
_MOST_DRAWS = 8


class Distillation(LabelObjective):
    """Cross-entropy of the labels, and of the model's own answers before the run (Li & Hoiem 2016).

    Learning without forgetting, arXiv 1606.09282. Its answers on the training data are recorded once, as
    labels drawn from its distribution: no second model is kept, and a step costs what it costs without. See
    :mod:`fangyan.objectives.sampling`.
    """

    name: Literal["distillation"] = "distillation"

    share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5,
        description="Of labels that are the model's own answers before the run, drawn anew in each step: the "
        "loss is (1 - share) times that of the labels, plus share times that of its distribution.",
    )

    @override
    def check(self, task: Any, has_new_head: bool) -> None:
        """Refuse what has no answers before the run."""
        if has_new_head:
            raise UserError(
                "objective.name: is distillation, but the model's head is new and knows no answers; expected "
                "a model of this task, such as a stage before"
            )
        if task.has_targets:
            raise UserError(
                "objective.name: is distillation, which is for classes, found numbers, spans or several; "
                "expected another objective"
            )
        if task.corrupts:
            raise UserError(
                f"objective.name: is distillation, but what {task.name} reads is another text in each step, "
                "so that no answers can be recorded; expected l2sp or ewc"
            )

    @override
    def start(self, run: Run) -> Prepared:
        """Record the model's answers, or find them again."""
        from fangyan.distributed.process_group import gathered
        from fangyan.objectives.kept import keep
        from fangyan.objectives.sampling import load_labels, sample_labels

        path = run.kept / f"answers-{run.sequences.digest()}.npy"
        labels = load_labels(path, run.sequences.num_valid)
        if not all(gathered(labels is not None)) or labels is None:
            labels = sample_labels(
                *(run.engine, run.model, run.sequences, run.sequences.lengths, run.tokenizer.pad_id),
                *(min(run.epochs, _MOST_DRAWS), run.seed),
            )
            keep(path, labels.save, run.leaders)
        return Prepared(teacher=labels, share=self.share)
