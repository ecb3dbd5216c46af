"""A trained language model in use: text in, its continuation out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer
from typing_extensions import override

from fangyan.data.tokenization import Tokenizer
from fangyan.errors import UserError
from fangyan.models.packed import PackedModel
from fangyan.models.structure import max_length
from fangyan.tasks.predictor import Prediction, Predictor

# Sub-words that are written where nobody says how many, and that may be asked for.
NEW_TOKENS, _MOST_NEW_TOKENS = 64, 1_000_000
# Beyond these, sampling is taking the most likely sub-word or any: scores divided by less are infinite.
_TEMPERATURES = 1e-3, 1e3


@dataclass(frozen=True, slots=True)
class Continuation(Prediction):
    """What a model writes after a text; it is written as :meth:`pieces` is read.

    Attributes:
        text: the beginning.
        new_text: yields the continuation, a piece at a time.
    """

    text: str
    new_text: Iterator[str]

    @override
    def pieces(self) -> Iterator[str]:
        """Yield the text, then its continuation."""
        yield self.text
        yield from self.new_text

    @override
    def record(self) -> dict[str, Any]:
        """Return text and continuation."""
        return {"text": self.text, "continuation": "".join(self.new_text)}


class TextGenerator(Predictor):
    """A model that writes; see :class:`fangyan.tasks.task.Predictor`.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
    """

    def __init__(self, model: PackedModel, tokenizer: Tokenizer):
        self._model = model
        self._tokenizer = tokenizer.backend

    @override
    def predict(
        self, texts: Iterable[str], max_new_tokens: int = NEW_TOKENS, temperature: float = 0.0
    ) -> list[str]:
        """Return what follows each text; options are those of :meth:`generate`."""
        return ["".join(self.generate(text, max_new_tokens, temperature)) for text in texts]

    @override
    def stream(
        self, texts: Iterable[str], *, interactive: bool = False, options: Mapping[str, Any] | None = None
    ) -> Iterator[Prediction]:
        """Yield continuations; see :class:`fangyan.tasks.task.Predictor`. Options are :meth:`generate`'s."""
        del interactive  # it always is
        for text in texts:
            yield Continuation(text, self.generate(text, **(options or {})))

    def generate(
        self, text: str, max_new_tokens: int = NEW_TOKENS, temperature: float = 0.0
    ) -> Iterator[str]:
        """Continue a text, a piece at a time.

        Args:
            text: the beginning.
            max_new_tokens: most sub-words; the model may end before.
            temperature: 0 takes the most likely sub-word each time; more samples from all of them, by
                PyTorch's generator.

        Raises:
            UserError: for an option out of bounds, or no text where the model needs one.
        """
        self.check(max_new_tokens, temperature)
        return self._generate(self._encode(text), max_new_tokens, temperature)

    def check(self, max_new_tokens: int, temperature: float) -> None:
        """Refuse options out of bounds; see :meth:`generate`."""
        if not 1 <= max_new_tokens <= _MOST_NEW_TOKENS:
            raise UserError(
                f"max_new_tokens: {max_new_tokens}, expected at least 1, and {_MOST_NEW_TOKENS:,} at most"
            )
        lowest, highest = _TEMPERATURES
        if temperature != 0.0 and not lowest <= temperature <= highest:  # nan is neither
            raise UserError(
                f"temperature: {temperature:g}, expected 0, or at least {lowest:g} and {highest:g} at most"
            )

    @property
    def _end_ids(self) -> list[int] | int | None:
        """Return the tokens that end what is written."""
        ends: int | None = self._tokenizer.eos_token_id
        return ends

    def _encode(self, text: str) -> Tensor:
        tokenizer = self._tokenizer
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids = first + tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError("predict: the text is empty and the model has no token to begin with")
        return torch.tensor([ids], device=next(self._model.parameters()).device)

    def _generate(self, ids: Tensor, max_new_tokens: int, temperature: float) -> Iterator[str]:
        """Generate in a thread, so that pieces can be read as they come."""
        tokenizer = self._tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        stopped = Event()
        failures: list[BaseException] = []
        options: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": max_new_tokens,
            "do_sample": temperature > 0.0,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": self._end_ids,
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([_StopOn(stopped)]),
        }
        if temperature > 0.0:
            options |= {"temperature": temperature, "top_k": 0}

        def work() -> None:
            try:
                self._model.model.generate(**options)
            except BaseException as error:  # raised where the text is read, which would hang
                failures.append(error)
                streamer.text_queue.put(streamer.stop_signal)

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:  # also where the reader stops early
            stopped.set()
            thread.join()
        if failures:
            self._check_room(ids.shape[1] + max_new_tokens)
            raise failures[0]

    def _check_room(self, length: int) -> None:
        """Say of a generation that has failed that it was beyond a table of positions, where it was."""
        limit = max_length(self._model.base, None)
        if length > limit:
            raise UserError(
                f"predict: text and continuation may have {length:,} sub-words, but the model takes {limit:,}"
                "; expected a shorter text, or fewer --max-new-tokens"
            )


class _StopOn(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
    """Stops a generation whose reader has gone."""

    def __init__(self, event: Event):
        self._event = event

    @override
    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return for each sequence whether it is done."""
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)
