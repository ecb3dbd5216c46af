"""The interface of a trained model in use, whatever its task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fangyan.data.example import Annotation, Example
from fangyan.data.splits import with_prefix
from fangyan.errors import UserError


class Prediction(ABC):
    """What a predictor says of one text."""

    @abstractmethod
    def pieces(self) -> Iterator[str]:
        """Yield it as text, a piece at a time as it comes."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return it as what one line of JSON holds."""


class Scored(NamedTuple):
    """What a model makes of one example, in numbers.

    Attributes:
        log_probabilities_UC: of the classes of each unit that has one, a token or the text: (U, C).
        classes_U: what is predicted: decoded over a whole sentence, it need not be the likeliest of a token.
        hidden_UH: what the model's head reads of each unit, (U, H), where it was asked for.
    """

    log_probabilities_UC: NDArray[np.float32]
    classes_U: NDArray[np.int64]
    hidden_UH: NDArray[np.float32] | None = None


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

    def example(self, text: str, source: str = "") -> Example:
        """Return a text as an example of the model's.

        Args:
            text: as a user types it.
            source: of it, for error messages.

        Raises:
            UserError: if it is not what the model reads.
        """
        return Example({"text": text}, source, text)

    @property
    def labels(self) -> Sequence[str]:
        """Return the tags or classes that the model has learned; none, if it predicts others."""
        return ()

    def knows(self, label: str) -> bool:
        """Return whether the model has learned a tag, as files have it, or a class."""
        return label in self.labels

    def corrected(self, example: Example, labels: Sequence[str]) -> Annotation:
        """Return what a person says of an example, as :meth:`annotate` has it.

        Args:
            example: without labels.
            labels: a tag for each token, as files have it, or the class of a text.

        Raises:
            UserError: for a label that the model has not learned, or tags that are not well-formed.
        """
        raise UserError(f"{example.source}: labels {', '.join(labels)}, but the model predicts others")

    def score(self, examples: Iterable[Example], hidden: bool = False) -> Iterator[Scored]:  # noqa: ARG002
        """Yield the probabilities of each example's classes, in order, for input of any length.

        Args:
            examples: as for :meth:`annotate`.
            hidden: whether to return what the head reads, too.

        Raises:
            UserError: if the model gives no unit one class of several.
        """
        raise UserError("expected a tagger, or a classifier of one class per text, found another model")
