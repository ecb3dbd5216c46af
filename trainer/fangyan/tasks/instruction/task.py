"""Instruction tuning: the answers of conversations, by a causal language model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field
from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.findings import Finding
from fangyan.data.splits import DataConfig
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence, Tokenizer
from fangyan.errors import UserError
from fangyan.tasks.checks import COMPARED, counted
from fangyan.tasks.instruction.template import ChatTemplate, Piece
from fangyan.tasks.language_model import CausalTask
from fangyan.tasks.task import Metrics, TaskConfig

if TYPE_CHECKING:
    from fangyan.data.formats.messages import Message
    from fangyan.models.packed import PackedModel
    from fangyan.tasks.instruction.predictor import Assistant

# Sub-words of a prompt that an answer too long for a sequence leaves room for.
_LEAST_PROMPT = 8


class Cut(NamedTuple):
    """How much of a conversation is not read.

    Attributes:
        prompt: sub-words at the beginning of a prompt.
        answer: sub-words at the end of an answer.
    """

    prompt: int = 0
    answer: int = 0


class InstructionConfig(TaskConfig):
    """The assistant's answers in conversations, by any causal language model."""

    name: Literal["instruction"] = "instruction"
    fields: ClassVar[tuple[str, ...]] = ("messages",)

    system: str | None = Field(
        None, description="A system message for conversations without one, and for those to come."
    )

    @override
    def build(self, splits: Splits, data: DataConfig) -> Instruction:
        """Return the task."""
        return Instruction(self.system)

    @classmethod
    @override
    def from_export(cls, config: Mapping[str, Any], model_config: Any) -> Instruction:
        """Return the task."""
        system = config.get("system")
        if system is not None and not isinstance(system, str):
            raise ValueError(f"system is {str(system)[:60]!r}, expected text")
        return Instruction(system)


class Instruction(CausalTask):
    """Answers of conversations; see :class:`fangyan.tasks.task.Task`.

    Args:
        system: message for conversations without one.
    """

    name: ClassVar[str] = "instruction"
    takes_token_masking: ClassVar[bool] = False

    def __init__(self, system: str | None = None):
        self.system = system
        self._template: ChatTemplate | None = None

    @override
    def use_model(self, model: Any, backend: Any) -> None:
        """Tell the model what ends an answer, in whose export ``generate`` then stops there."""
        ends = sorted(self.template(backend).end_ids)
        if model.generation_config is not None:
            model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]

    def template(self, backend: Any) -> ChatTemplate:
        """Return the template of a tokenizer of transformers."""
        if self._template is None or self._template.backend is not backend:
            self._template = ChatTemplate(backend)
        return self._template

    def messages(self, example: Example) -> list[Message]:
        """Return an example's messages, with the system's before them."""
        messages: Sequence[Message] = example.fields["messages"]
        if self.system is None or messages[0]["role"] == "system":
            return list(messages)
        return [{"role": "system", "content": self.system}, *messages]

    @override
    def inputs(self, example: Example) -> str:
        """Return all messages."""
        return "\n".join(message["content"] for message in example.fields["messages"])

    @override
    def tokenize(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> list[TokenizedSequence]:
        """Return a sequence for each conversation, whose labels are the sub-words of its answers.

        Where the whole is longer than a sequence, or written otherwise than each answer was given, there is
        one for each answer with what is before it.
        """
        return [
            _sequence(pieces, i)
            for i, example in enumerate(examples)
            for pieces, _ in self._sequences(example, tokenizer, max_length)
        ]

    def _sequences(
        self, example: Example, tokenizer: Tokenizer, max_length: int
    ) -> Iterator[tuple[list[Piece], Cut]]:
        """Yield the pieces of each sequence of an example, and what is missing of it."""
        template, messages = self.template(tokenizer.backend), self.messages(example)
        try:
            pieces = template.pieces(messages)
            if pieces is not None and _length(pieces) <= max_length:
                yield pieces, Cut()
                return
            for i, message in enumerate(messages):
                if message["role"] == "assistant":
                    yield _fitted(template.turn(messages[:i], message, tokenizer), max_length)
        except UserError as error:
            raise UserError(f"{example.source}: {error}") from None

    @override
    def cut_findings(
        self, name: str, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> Iterable[Finding]:
        """Return how many prompts and answers are longer than a sequence has room for."""
        cut: dict[str, list[str]] = {"prompts": [], "answers": []}
        for example in islice(examples, COMPARED):
            # A sub-word is a byte at least; a template writes no more than some around each message.
            size = len(self.inputs(example).encode("utf-8", "surrogatepass"))
            if size + 64 * len(example.fields["messages"]) <= max_length:
                continue
            for _, missing in self._sequences(example, tokenizer, max_length):
                for what, number in (("prompts", missing.prompt), ("answers", missing.answer)):
                    if number:
                        cut[what].append(example.source)
        where = {"prompts": "beginning", "answers": "end"}
        for what, sources in cut.items():
            if sources:
                yield Finding(
                    "warning",
                    f"data.{name}",
                    f"{len(sources):,} {what} of its {counted(len(examples), COMPARED)} are longer than "
                    f"{max_length:,} sub-words leave room for, and their {where[what]} is not read, such as "
                    f"in {sources[0]}",
                )

    @override
    def characters(self, example: Example) -> int:
        """Return the characters of the answers."""
        messages = example.fields["messages"]
        return sum(len(message["content"]) for message in messages if message["role"] == "assistant")

    @override
    def generated_metrics(
        self, examples: Sequence[Example], model: PackedModel, tokenizer: Tokenizer, max_length: int
    ) -> Metrics:
        """Return scores of the answers that the model writes itself, against each conversation's last."""
        from fangyan.tasks.instruction.scores import answer_scores

        if not examples:
            return {}
        questions, references = [], []
        for example in examples:
            messages = self.messages(example)
            last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
            questions.append(messages[:last])
            references.append(messages[last]["content"])
        longest = max(len(tokenizer.backend(text)["input_ids"]) for text in references)
        assistant = self.predictor(model, tokenizer, max_length)
        return answer_scores(assistant.answer_all(questions, min(2 * longest + 16, 1024)), references)

    @override
    def predictor(self, model: PackedModel, tokenizer: Tokenizer, max_length: int) -> Assistant:
        """Return the model as an assistant."""
        from fangyan.tasks.instruction.predictor import Assistant

        return Assistant(model, tokenizer, self.template(tokenizer.backend), self.system)

    @override
    def export_config(self) -> dict[str, Any]:
        """Return the system message; the template is the tokenizer's."""
        return {"system": self.system}


def _length(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)


def _fitted(pieces: list[Piece], max_length: int) -> tuple[list[Piece], Cut]:
    """Return a prompt and its answer within a sequence: without the one's beginning, or the other's end."""
    over = _length(pieces) - max_length
    if over <= 0:
        return pieces, Cut()
    at = next(i for i, piece in enumerate(pieces) if piece.is_answer)
    before = [i for piece in pieces[:at] for i in piece.ids]
    answer = pieces[at].ids
    behind = _length(pieces[at + 1 :])  # what is learned of nothing goes first
    over -= min(behind, over)
    dropped = min(over, max(len(before) - _LEAST_PROMPT, 0))
    kept = answer[: len(answer) - (over - dropped)]
    fitted = [Piece(before[dropped:], False), Piece(kept, True)]
    return [piece for piece in fitted if piece.ids], Cut(dropped, over - dropped)


def _sequence(pieces: Sequence[Piece], example: int) -> TokenizedSequence:
    """Return pieces as a sequence, in which each label is the next sub-word, if that is an answer's."""
    ids = [i for piece in pieces for i in piece.ids]
    learned = [piece.is_answer for piece in pieces for _ in piece.ids]
    following = zip(ids[1:], learned[1:], strict=True)
    labels = [i if is_answer else IGNORE_INDEX for i, is_answer in following]
    return TokenizedSequence(ids, [*labels, IGNORE_INDEX], example)
