"""The interface of a task. The trainer knows no task by name."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fangyan.config import Config
from fangyan.data.example import Annotation, Example, Splits
from fangyan.data.findings import Finding
from fangyan.data.splits import DataConfig, with_prefix
from fangyan.data.store import cache_folder
from fangyan.data.token_store import TokenStore, tokenize_all
from fangyan.data.tokenization import LabelPlace, TokenizedSequence, Tokenizer
from fangyan.errors import UserError
from fangyan.tasks.report import Report

if TYPE_CHECKING:
    from fangyan.data.packing import Batch
    from fangyan.models.loss_head import Kernels
    from fangyan.models.packed import Layout, PackedModel


Metrics = dict[str, float]


class Prediction(ABC):
    """What a predictor says of one text."""

    @abstractmethod
    def pieces(self) -> Iterator[str]:
        """Yield it as text, a piece at a time as it comes."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return it as what one line of JSON holds."""


class Predictor(ABC):
    """A trained model in use.

    Attributes:
        prefix: name of the data set that texts are of, where the model has learned to be told; see
            :class:`fangyan.data.formats.sources.Sources`.
    """

    prefix: str | None = None

    def told(self, example: Example) -> Example:
        """Return an example as the model reads it."""
        return example if self.prefix is None else with_prefix(example, self.prefix)

    @abstractmethod
    def predict(self, texts: Iterable[str]) -> Sequence[Any]:
        """Return a prediction for every text, in order."""

    @abstractmethod
    def stream(
        self, texts: Iterable[str], *, interactive: bool = False, options: Mapping[str, Any] | None = None
    ) -> Iterator[Prediction]:
        """Yield predictions, in order, for input of any length.

        Args:
            texts: one at a time.
            interactive: answer each text before the next is read.
            options: of this kind of predictor.

        Raises:
            UserError: for an option that it does not have, or that is out of bounds.
        """

    def chat(
        self, messages: Sequence[Mapping[str, str]], max_new_tokens: int = 512, temperature: float = 0.0
    ) -> Iterator[str]:
        """Answer the last of some messages, a piece at a time; assistants only.

        Args:
            messages: with role and content, the last of the user's; the system's is put before them.
            max_new_tokens: most sub-words; the model may end before.
            temperature: 0 takes the most likely sub-word each time; more samples from all of them.

        Raises:
            UserError: if the model has learned something else, or for an option out of bounds.
        """
        del messages, max_new_tokens, temperature
        raise UserError("chat: is for models of the task instruction, found one that answers nothing")

    def annotate(self, examples: Iterable[Example], probabilities: int = 0) -> Iterator[Annotation]:  # noqa: ARG002
        """Yield what is predicted for each example of a file, in order, for input of any length.

        Args:
            examples: without what is predicted: tags, a label or answers.
            probabilities: how many of the most likely tags of each token, or classes of a text, to return
                with their probabilities.

        Raises:
            UserError: if the model has learned to write text.
        """
        raise UserError(
            "--input: this file needs a model that predicts tags, labels or answers, found one that writes "
            "text"
        )


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

    def predictions(self, examples: Sequence[Example], outputs: Sequence[Any]) -> Sequence[Any]:
        """Return what is predicted of each example, from the outputs of all batches.

        Nothing where that is a number or text. They say whether two forms of a model answer alike.
        """
        del examples, outputs
        return ()

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

    @abstractmethod
    def build(self, splits: Splits, data: DataConfig) -> Task:
        """Return the task, fitted to its data.

        Raises:
            UserError: for an example that does not fit the recipe.
        """

    @classmethod
    @abstractmethod
    def from_export(cls, config: Mapping[str, Any], model_config: Any) -> Task:
        """Return the task of an exported model.

        Args:
            config: what :meth:`Task.export_config` returned.
            model_config: transformers' configuration of the model.
        """


TokenUnit = Literal["words", "characters"]
