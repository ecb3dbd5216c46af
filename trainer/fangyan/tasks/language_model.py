"""What tasks have in common whose labels are a text's own sub-words, and whose metrics are perplexities."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.findings import Finding
from fangyan.tasks.resampling import Counts, ResampledMetrics
from fangyan.tasks.task import Metrics, Task

if TYPE_CHECKING:
    from fangyan.data.packing import Batch
    from fangyan.models.packed import PackedModel


class LanguageModelTask(Task, ABC):
    """A task without labels of its own; see :class:`fangyan.tasks.task.Task`.

    Perplexity per character says which of two models is better, whatever sub-words a tokenizer makes of text.
    """

    # The head is part of what is adapted.
    has_new_head: ClassVar[bool] = False
    tokenizer_kwargs: ClassVar[Mapping[str, Any]] = {}
    greater_is_better: ClassVar[bool] = False
    metric_unit: ClassVar[str] = ""
    outputs_are_of_batches: ClassVar[bool] = True
    # How metrics call it.
    perplexity: ClassVar[str] = "perplexity"

    @property
    @override
    def primary_metric(self) -> str:
        """Return perplexity per character."""
        return self.metric_names[0]

    @property
    @override
    def metric_names(self) -> Sequence[str]:
        return (f"character_{self.perplexity}", f"subword_{self.perplexity}", "bits_per_character")

    @override
    def model_kwargs(self) -> dict[str, Any]:
        """Return nothing: the model stays as it is."""
        return {}

    @override
    def inputs(self, example: Example) -> str:
        """Return the text."""
        text: str = example.fields["text"]
        return text

    @override
    def findings(self, splits: Splits) -> Iterable[Finding]:
        """Return nothing: any text can be learned."""
        return ()

    @override
    def label_counts(self, splits: Splits) -> Mapping[str, Mapping[str, int]]:
        """Return nothing: there are no labels."""
        return {}

    @override
    def outputs(self, model: PackedModel, batch: Batch) -> list[tuple[float, int]]:
        """Return the summed loss of the batch in nats, and how many sub-words it is of."""
        return [(float(model.loss(batch).double()), batch.num_valid)]

    def characters(self, example: Example) -> int:
        """Return how many characters of an example are learned."""
        return len(example.fields["text"])

    @override
    def metrics(self, examples: Sequence[Example], outputs: Sequence[tuple[float, int]]) -> Metrics:
        """Return perplexities over all sub-words that are learned, and bits per character."""
        characters = sum(map(self.characters, examples))
        sums = [sum(loss for loss, _ in outputs), sum(count for _, count in outputs), characters]
        return {name: float(values[0]) for name, values in self._perplexities(np.array([sums])).items()}

    @override
    def resampler(self, examples: Sequence[Example], outputs: Sequence[tuple[float, int]]) -> Counts:
        """Return what computes the perplexities of resampled texts."""
        rows = [
            (loss, count, self.characters(example))
            for example, (loss, count) in zip(examples, outputs, strict=True)
        ]
        return Counts(np.array(rows, dtype=np.float64), self._perplexities)

    def _perplexities(self, sums_RK: NDArray[np.float64]) -> ResampledMetrics:
        """Return the metrics of sums of losses, sub-words and characters; infinity where there are none."""
        losses, subwords, characters = sums_RK.astype(np.float64).T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            is_any = (subwords > 0) & (characters > 0)
            per_character = np.where(is_any, losses / characters, np.inf)
            values = (
                np.exp(per_character),
                np.exp(np.where(is_any, losses / subwords, np.inf)),
                per_character / math.log(2),
            )
        return dict(zip(self.metric_names, values, strict=True))

    @override
    def report(self, examples: Sequence[Example], outputs: Sequence[tuple[float, int]]) -> None:
        """Return nothing: sub-words are too many to report on."""


class CausalTask(LanguageModelTask, ABC):
    """A task of a model that reads from left to right: labels are the next sub-words."""

    is_causal: ClassVar[bool] = True
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str] = "text-generation"

    @property
    @override
    def auto_model(self) -> Any:
        """Return ``AutoModelForCausalLM``."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM
