"""The interface of a task. The trainer knows no task by name."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fangyan.config import Config
from fangyan.data.example import Example, Splits
from fangyan.data.findings import Finding
from fangyan.data.splits import DataConfig
from fangyan.data.store import cache_folder
from fangyan.data.token_store import TokenStore, tokenize_all
from fangyan.data.tokenization import LabelPlace, TokenizedSequence, Tokenizer
from fangyan.tasks.report import Report
from fangyan.tasks.resampling import Resampler

if TYPE_CHECKING:
    from fangyan.data.packing import Batch
    from fangyan.models.loss_head import Kernels
    from fangyan.models.packed import Layout, PackedModel
    from fangyan.tasks.predictor import Predictor


Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Unit:
    """What has one label, as a prompt asks for it: a text, or a token in its sentence.

    Attributes:
        fields: what a template says of it, by name.
        label: of it.
    """

    fields: Mapping[str, str]
    label: str


class Task(ABC):
    """What a model learns: how examples become labels, and outputs become metrics.

    Attributes:
        name: as recipes and exports have it.
        is_causal: whether the model must not see what follows a sub-word.
        peft_task_type: PEFT's name for it.
        pipeline_tag: the Hub's name for it.
        has_new_head: whether the model's head is new, so that an adapter trains it whole.
        tokenizer_kwargs: for ``AutoTokenizer.from_pretrained``.
        primary_metric: says which of two models is better.
        greater_is_better: of the primary metric.
        metric_names: all that :meth:`metrics` returns.
        metric_unit: of all metrics, or "".
        class_weights: factor on the training loss of each class, (C,), or None where all are 1.
        pooling: which sub-word stands for a sequence that is classified as a whole, or the mean of all; None
            where its sub-words are classified.
        head_may_be_missing: whether a model may come without the head, which is then new.
        takes_token_masking: whether the recipe's ``train.token_masking`` hides what the task can do without.
        corrupts: whether sequences change for each step; see :meth:`corrupt`.
        has_targets: whether numbers or places are learned, and no classes: :attr:`TokenizedSequence.targets`.
        outputs_are_of_batches: whether :meth:`outputs` sums up a batch, and so says nothing of one example.
        temperature: what scores are divided by before they become probabilities; see
            :mod:`fangyan.analysis.calibration`.
    """

    name: ClassVar[str]
    is_causal: ClassVar[bool]
    peft_task_type: ClassVar[str]
    pipeline_tag: ClassVar[str]
    has_new_head: ClassVar[bool]
    tokenizer_kwargs: ClassVar[Mapping[str, Any]]
    greater_is_better: ClassVar[bool]
    metric_unit: ClassVar[str]
    head_may_be_missing: ClassVar[bool] = False
    takes_token_masking: ClassVar[bool] = True
    corrupts: ClassVar[bool] = False
    class_weights: Sequence[float] | None = None
    pooling: LabelPlace | None = None
    has_targets: bool = False
    outputs_are_of_batches: ClassVar[bool] = False
    temperature: float = 1.0

    @property
    @abstractmethod
    def primary_metric(self) -> str:
        """Return the metric that picks the best checkpoint."""

    @property
    @abstractmethod
    def metric_names(self) -> Sequence[str]:
        """Return the names of all metrics."""

    @property
    @abstractmethod
    def auto_model(self) -> Any:
        """Return the class of transformers that loads a model with this task's head."""

    @abstractmethod
    def model_kwargs(self) -> dict[str, Any]:
        """Return what the model's configuration has to say, such as its labels."""

    def pack(self, model: Any, layout: Layout, kernels: Kernels = "auto") -> PackedModel:
        """Return a model as one that takes packed batches, by the kind of its head.

        Args:
            model: of transformers, or PEFT's around one, after :meth:`use_model`.
            layout: see :meth:`PackedModel.use_layout`.
            kernels: implementation of the head's loss.
        """
        from fangyan.models.packed import PackedModel

        return PackedModel(model, layout, kernels)

    @abstractmethod
    def inputs(self, example: Example) -> Sequence[str]:
        """Return what the model reads of an example: its tokens, or the characters of a text."""

    @abstractmethod
    def findings(self, splits: Splits) -> Iterable[Finding]:
        """Return what is wrong with the labels of the data: what cannot be learned, say."""

    @abstractmethod
    def label_counts(self, splits: Splits) -> Mapping[str, Mapping[str, int]]:
        """Return how often each label occurs in each split, where examples have labels of their own."""

    def use_model(self, model: Any, backend: Any) -> None:  # noqa: B027  (most tasks need nothing of it)
        """Choose what depends on the model, once it is loaded and before anything is tokenized for it.

        Args:
            model: of transformers.
            backend: its tokenizer.
        """

    def cut_findings(
        self, name: str, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> Iterable[Finding]:
        """Return what a sequence has no room for, and so is not read, of a split's examples.

        Args:
            name: of the split.
            examples: of it.
            tokenizer: of the model.
            max_length: most sub-words of a sequence.
        """
        del name, examples, tokenizer, max_length  # most tasks make several sequences of what is long
        return ()

    def notes(self, examples: Sequence[Example]) -> list[str]:  # noqa: ARG002
        """Return messages on examples that a trained model is evaluated on; by default there are none."""
        return []

    @property
    def usage_note(self) -> str:
        """Return what the model card tells those who use the model without fangyan, or ""."""
        return ""

    @abstractmethod
    def tokenize(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> list[TokenizedSequence]:
        """Return the sequences of all examples, with labels where the examples have them.

        Raises:
            UserError: naming the line of a label that cannot be learned.
        """

    def tokenize_scored(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> list[TokenizedSequence]:
        """Return the sequences that examples are evaluated by; see :meth:`tokenize`."""
        return self.tokenize(examples, tokenizer, max_length)

    def corrupt(
        self, sequences: Sequence[TokenizedSequence], drawn: NDArray[np.uint64], tokenizer: Tokenizer
    ) -> list[TokenizedSequence]:
        """Return sequences as a step trains on them, where :attr:`corrupts`; of the same lengths.

        Args:
            sequences: of :meth:`tokenize`.
            drawn: a random number for each, which everything random has to follow from, (S,).
            tokenizer: of the model.
        """
        del drawn, tokenizer
        return list(sequences)

    def tokenize_all(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        max_length: int,
        cache: Path | None = None,
        scored: bool = False,
    ) -> TokenStore:
        """Return the sequences of examples that may be larger than memory.

        Args:
            examples: of one split.
            tokenizer: of the model.
            max_length: most sub-words of a sequence.
            cache: folder for what is larger than memory; see :func:`fangyan.data.store.cache_folder`.
            scored: whether they are evaluated, and not trained on.
        """
        tokenize = self.tokenize_scored if scored else self.tokenize
        backend = tokenizer.backend
        how = [
            *(self.name, self.export_config(), self.model_kwargs(), max_length, scored),
            *(backend.backend_tokenizer.to_str(), str(backend.special_tokens_map)),
        ]
        return tokenize_all(
            lambda chosen: tokenize(chosen, tokenizer, max_length),
            examples,
            json.dumps(how),
            cache or cache_folder(),
        )

    @abstractmethod
    def outputs(self, model: PackedModel, batch: Batch) -> list[Any]:
        """Return what evaluation keeps of a batch: few and small, since ranks exchange them.

        Called without gradients, inside the engine's forward.
        """

    @abstractmethod
    def metrics(self, examples: Sequence[Example], outputs: Sequence[Any]) -> Metrics:
        """Return every metric from the outputs of all batches of ``examples``, in any order."""

    @abstractmethod
    def resampler(self, examples: Sequence[Example], outputs: Sequence[Any]) -> Resampler:
        """Return what computes :meth:`metrics` of resamples of the examples.

        Args:
            examples: all of them.
            outputs: of these; where :attr:`outputs_are_of_batches`, one for each, in order.
        """

    @property
    def scored_as(self) -> dict[str, Any]:
        """Return what metrics depend on beside the examples: models that differ in it do not compare."""
        return {}

    def predicted(self, examples: Sequence[Example], outputs: Sequence[Any]) -> list[tuple[Any, ...]] | None:
        """Return what is predicted of each example: a label for each token, or of a text; or an answer.

        None where a model predicts none of these, and is scored by its loss.
        """
        del examples, outputs
        return None

    def gold(self, examples: Sequence[Example]) -> list[tuple[Any, ...]]:
        """Return what :meth:`predicted` is compared with, in the same form; a question's are its answers."""
        raise NotImplementedError(self.name)

    def with_scores(self) -> Task:
        """Return a task whose outputs are such that :meth:`class_scores` can be read of them."""
        return self

    def class_scores(
        self, examples: Sequence[Example], outputs: Sequence[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Return scores of each token or text that has one class, and the class that is right.

        Returns:
            Log-probabilities at temperature 1, (N, C); and classes, (N,), ``IGNORE_INDEX`` for one that was
            not learned. None where there is not one class at a time.
        """
        del examples, outputs
        return None

    def floor(self, splits: Splits) -> dict[str, Metrics]:
        """Return what a model has to be better than: the metrics of a guess, per split, if there is one."""
        del splits
        return {}

    @abstractmethod
    def report(self, examples: Sequence[Example], outputs: Sequence[Any]) -> Report | None:
        """Return scores of each class from the outputs of all batches; None if the task has no classes."""

    def generated_metrics(
        self, examples: Sequence[Example], model: PackedModel, tokenizer: Tokenizer, max_length: int
    ) -> Metrics:
        """Return metrics of what a model writes for examples, which takes a while; nothing if it does not."""
        del examples, model, tokenizer, max_length
        return {}

    @property
    def unit_labels(self) -> Sequence[str]:
        """Return the labels of :meth:`units`, in the order of scores; none, if units have not one each."""
        return ()

    def units(self, example: Example) -> list[Unit]:
        """Return what of a labelled example has one of :attr:`unit_labels` each."""
        raise NotImplementedError(self.name)

    def unit_output(self, example: int, log_probabilities_UC: NDArray[np.float32]) -> Any:
        """Return scores of an example's units as :meth:`outputs` has them, for :meth:`metrics`.

        Args:
            example: index of it.
            log_probabilities_UC: of its units' labels.
        """
        raise NotImplementedError(self.name)

    @abstractmethod
    def predictor(self, model: PackedModel, tokenizer: Tokenizer, max_length: int) -> Predictor:
        """Return the model in use."""

    @abstractmethod
    def export_config(self) -> dict[str, Any]:
        """Return what prediction needs to know of the task; :meth:`TaskConfig.from_export` reads it."""


class TaskConfig(Config, ABC):
    """The recipe's ``task``. Each task is a subclass with a ``name`` tag."""

    name: str
    # Of an example, that the task needs.
    fields: ClassVar[tuple[str, ...]]
    # Whether its model writes texts like those it learns from, beginning with nothing.
    can_write_texts: ClassVar[bool] = False

    @abstractmethod
    def build(self, splits: Splits, data: DataConfig) -> Task:
        """Return the task, fitted to its data.

        Raises:
            UserError: for an example that does not fit the recipe.
        """

    def kind_of(self, train: Sequence[Example]) -> str:  # noqa: ARG002
        """Return what the labels of train are, for messages, where a task recognises it; "" elsewhere."""
        return ""

    @classmethod
    @abstractmethod
    def from_export(cls, config: Mapping[str, Any], model_config: Any) -> Task:
        """Return the task of an exported model.

        Args:
            config: what :meth:`Task.export_config` returned.
            model_config: transformers' configuration of the model.
        """


TokenUnit = Literal["words", "characters"]
