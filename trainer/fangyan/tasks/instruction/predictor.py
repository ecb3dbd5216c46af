"""A trained assistant in use: questions in, answers out, one after the other in a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fangyan.data.tokenization import Tokenizer
from fangyan.models.packed import PackedModel
from fangyan.progress import track
from fangyan.tasks.causal_lm.predictor import TextGenerator
from fangyan.tasks.instruction.template import ChatTemplate
from fangyan.tasks.predictor import Prediction

# Answers that are written together.
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Answer(Prediction):
    """What an assistant answers; it is written as :meth:`pieces` is read.

    Attributes:
        question: of the user.
        new_text: yields the answer, a piece at a time.
    """

    question: str
    new_text: Iterator[str]

    @override
    def pieces(self) -> Iterator[str]:
        """Yield the answer alone."""
        yield from self.new_text

    @override
    def record(self) -> dict[str, Any]:
        """Return question and answer."""
        return {"question": self.question, "answer": "".join(self.new_text)}


class Assistant(TextGenerator):
    """A model that answers; see :class:`fangyan.tasks.task.Predictor`.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        template: writes conversations.
        system: message that each begins with, or None.
    """

    def __init__(
        self, model: PackedModel, tokenizer: Tokenizer, template: ChatTemplate, system: str | None = None
    ):
        super().__init__(model, tokenizer)
        self._template = template
        self._system = system
        self._pad_id = tokenizer.pad_id

    @override
    def stream(
        self, texts: Iterable[str], *, interactive: bool = False, options: Mapping[str, Any] | None = None
    ) -> Iterator[Answer]:
        """Yield an answer to each text, which knows nothing of the others; options are :meth:`generate`'s."""
        del interactive  # it always is
        for text in texts:
            yield Answer(text, self.generate(text, **(options or {})))

    @override
    def chat(
        self, messages: Sequence[Mapping[str, str]], max_new_tokens: int = 512, temperature: float = 0.0
    ) -> Iterator[str]:
        self.check(max_new_tokens, temperature)
        return self._generate(self._prompt(messages), max_new_tokens, temperature)

    def _prompt(self, messages: Sequence[Mapping[str, str]]) -> Tensor:
        begin: list[Mapping[str, str]] = []
        if self._system is not None and messages[0]["role"] != "system":
            begin = [{"role": "system", "content": self._system}]
        ids = self._template.prompt([*begin, *messages])
        return torch.tensor([ids], device=next(self._model.parameters()).device)

    @override
    def _encode(self, text: str) -> Tensor:
        return self._prompt([{"role": "user", "content": text}])

    @property
    @override
    def _end_ids(self) -> list[int]:
        return sorted(self._template.end_ids)

    @torch.no_grad()
    def answer_all(self, questions: Sequence[Sequence[Mapping[str, str]]], max_new_tokens: int) -> list[str]:
        """Return the most likely answer to each of some conversations, several written at once."""
        prompts = [self._prompt(messages)[0] for messages in questions]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        for first in track(range(0, len(order), _BATCH), "writing answers"):
            chosen = order[first : first + _BATCH]
            for i, text in zip(
                chosen, self._answers([prompts[i] for i in chosen], max_new_tokens), strict=True
            ):
                answers[i] = text
        return answers

    def _answers(self, prompts: Sequence[Tensor], max_new_tokens: int) -> list[str]:
        """Return answers to prompts, which are padded on the left: each continues at its row's end."""
        width = max(len(prompt) for prompt in prompts)
        shape = len(prompts), width
        ids = torch.full(shape, self._pad_id, dtype=torch.int64, device=prompts[0].device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        found = self._model.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self._pad_id,
            eos_token_id=self._end_ids,
        )
        return list(self._tokenizer.batch_decode(found[:, width:], skip_special_tokens=True))
