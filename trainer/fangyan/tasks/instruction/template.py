"""How a conversation is written for a model, and which of its sub-words are the assistant's.

By the tokenizer's own chat template, or a plain one where it has none. What an answer is, is found by writing
the conversation up to it and with it: the second has to begin with the first, which is what a model is
given when it answers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fangyan.data.tokenization import Tokenizer
from fangyan.errors import UserError

# Each message after its role, ended by the tokenizer's own token.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + '\\n' + message['content'] + "
    "eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"
)
# Of which the end of an answer is learned.
_PROBE: tuple[Mapping[str, str], ...] = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of a conversation's sub-words.

    Attributes:
        ids: of the sub-words.
        is_answer: whether they are learned.
    """

    ids: list[int]
    is_answer: bool


class ChatTemplate:
    """Writes conversations; see the module.

    Args:
        backend: tokenizer of transformers; it gets the plain template where it has none.

    Raises:
        UserError: if the template cannot write a question and its answer.
    """

    def __init__(self, backend: Any):
        self.backend = backend
        self.end_ids = self._find_end()

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the sub-words that an answer to these messages continues."""
        return self._encode(self._write(messages, True))

    def pieces(self, messages: Sequence[Mapping[str, str]]) -> list[Piece] | None:
        """Return a conversation's sub-words, each answer behind those that a model is given to answer.

        Returns:
            None where an answer is written or cut into sub-words otherwise once others follow it.

        Raises:
            UserError: if the template does not write these messages, or changes what is before an answer.
        """
        whole = self._write(messages, False)
        encoded = self.backend(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        starts = [start for start, _ in encoded["offset_mapping"]]
        pieces: list[Piece] = []
        done = 0
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = self._around(messages[:i], message)
            first, last = bisect_left(starts, len(before)), bisect_left(starts, len(after))
            given = ids[:first] == self._encode(before) and ids[:last] == self._encode(after)
            if not whole.startswith(after) or not given or first < done:
                return None
            pieces += self._split(ids[done:first], ids[first:last])
            done = last
        return [*pieces, Piece(ids[done:], False)] if ids[done:] else pieces

    def turn(
        self, before: Sequence[Mapping[str, str]], answer: Mapping[str, str], tokenizer: Tokenizer
    ) -> list[Piece]:
        """Return the sub-words of a conversation up to an answer, the only one that is learned."""
        prompt, whole = self._around(before, answer)
        return self._split(self._encode(prompt), tokenizer.continuation(whole[len(prompt) :]))

    def _around(self, before: Sequence[Mapping[str, str]], answer: Mapping[str, str]) -> tuple[str, str]:
        """Return a conversation as it is written up to an answer, and with it."""
        prompt, whole = self._write(before, True), self._write([*before, answer], False)
        if not whole.startswith(prompt):
            raise UserError(
                "model.path: its chat template writes something else before an answer than before it is "
                f"given ({prompt[-40:]!r}), expected a template whose answers follow their prompt"
            )
        return prompt, whole

    def _split(self, prompt: list[int], answer: list[int]) -> list[Piece]:
        # What the template has behind the end of an answer, such as a line break, nobody waits for.
        end = next((i + 1 for i in reversed(range(len(answer))) if answer[i] in self.end_ids), len(answer))
        pieces = [Piece(prompt, False), Piece(answer[:end], True), Piece(answer[end:], False)]
        return [piece for piece in pieces if piece.ids]

    def _encode(self, text: str) -> list[int]:
        return list(self.backend(text, add_special_tokens=False)["input_ids"])

    def _write(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        if not messages:
            return ""
        try:
            written: str = self.backend.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # of Jinja, or raised by the template itself
            roles = ", ".join(message["role"] for message in messages[:6])
            raise UserError(
                f"model.path: its chat template does not write messages of {roles}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from None
        return written

    def _find_end(self) -> frozenset[int]:
        """Return the tokens that end an answer: the tokenizer's, and the last special one of a template."""
        backend = self.backend
        if backend.chat_template is None:
            if backend.eos_token is None:
                raise UserError(
                    "model.path: its tokenizer has neither a chat template nor a token that ends a text, "
                    "expected one of them"
                )
            backend.chat_template = PLAIN_TEMPLATE.replace(
                "{{ bos_token }}", "" if backend.bos_token is None else "{{ bos_token }}"
            )
        _, whole = self._around(_PROBE[:1], _PROBE[1])
        no_end = {backend.unk_token_id, backend.pad_token_id, backend.bos_token_id, backend.mask_token_id}
        special = (set(backend.all_special_ids) | set(backend.added_tokens_decoder)) - no_end
        special |= {backend.eos_token_id}  # which may be the padding too
        last = [i for i in self._encode(whole) if i in special][-1:]
        return frozenset([*last, *([] if backend.eos_token_id is None else [backend.eos_token_id])])
