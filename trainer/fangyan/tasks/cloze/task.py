"""Classes of texts by the words that a masked language model fills in (PET).

Schick & Schuetze 2021, arXiv 2001.07676: a pattern puts each text into a sentence with a gap, and a word
stands for each class. A model that was trained to fill gaps knows something of the classes before it has
seen an example, and no head is new. Trained is the cross-entropy over the whole vocabulary, by the fused head
(as the right words of ADAPET, Tam et al. 2021, arXiv 2103.11955); predicted is the likeliest of the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic
from pydantic import Field
from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.findings import Finding
from fangyan.data.splits import DataConfig
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence, Tokenizer
from fangyan.errors import UserError
from fangyan.tasks.cloze.pattern import PAIR, TEXT, Pattern, word_ids
from fangyan.tasks.sequence_classification.labels import check_classes, recognise
from fangyan.tasks.sequence_classification.outputs import TextOutput
from fangyan.tasks.sequence_classification.task import SequenceClassification
from fangyan.tasks.task import Task, TaskConfig

if TYPE_CHECKING:
    from fangyan.data.packing import Batch
    from fangyan.models.loss_head import Kernels
    from fangyan.models.packed import Layout, PackedModel

_KIND: Literal["single_label_classification"] = "single_label_classification"


class ClozeConfig(TaskConfig):
    """A class for a text or a pair, as the word that a masked language model fills in: few labels may do."""

    name: Literal["cloze"] = "cloze"
    fields: ClassVar[tuple[str, ...]] = ("text", "label")

    pattern: str = Field(
        ...,
        description="A sentence around a text, with a gap: '{text} It was {gap}.' {pair} is the second text.",
    )
    words: dict[str, str] = Field(
        ..., description="The word of each class, one of the model's sub-words: {good: great, bad: terrible}."
    )

    @pydantic.model_validator(mode="after")
    def _is_a_pattern(self) -> ClozeConfig:
        Pattern(self.pattern)
        if len(self.words) < 2:
            raise ValueError(f"words has {len(self.words)} classes, expected two or more")
        return self

    @override
    def build(self, splits: Splits, data: DataConfig) -> Cloze:
        """Return the task; see :class:`TaskConfig`."""
        kind = recognise(splits["train"])
        if kind != _KIND:
            raise UserError(f"task.name: cloze is for one class per text, found {kind.replace('_', ' ')}")
        pattern = Pattern(self.pattern)
        has_pairs = PAIR in splits["train"][0].fields
        if pattern.has_pair != has_pairs:
            found = "pairs of texts" if has_pairs else "single texts"
            expected = "{pair} in it" if has_pairs else "no {pair}"
            raise UserError(f"task.pattern: data.train has {found}, expected {expected}")
        for examples in splits.values():
            check_classes(examples, kind, list(self.words))
        return Cloze(pattern, self.words)

    @classmethod
    @override
    def from_export(cls, config: Mapping[str, Any], model_config: Any) -> Cloze:
        """Return the task of an exported model."""
        pattern, words = config.get("pattern"), config.get("words")
        try:
            rows = [(str(label), str(word), int(own)) for label, word, own in words or ()]
        except (TypeError, ValueError):
            rows = []
        if not isinstance(pattern, str) or len(rows) < 2:
            raise ValueError(f"pattern is {str(pattern)[:60]!r}, words {str(words)[:60]!r}, expected both")
        task = Cloze(Pattern(pattern), {label: word for label, word, _ in rows})
        task.word_ids = [own for *_, own in rows]
        return task


class Cloze(SequenceClassification):
    """Classes as words in a gap; see :class:`fangyan.tasks.task.Task`.

    Args:
        pattern: around each text.
        words: of the classes.

    Attributes:
        word_ids: sub-words of the words, once there is a model.
    """

    name: ClassVar[str] = "cloze"
    peft_task_type: ClassVar[str] = "FEATURE_EXTRACTION"  # PEFT has none for it; this one changes nothing
    pipeline_tag: ClassVar[str] = "fill-mask"
    has_new_head: ClassVar[bool] = False

    def __init__(self, pattern: Pattern, words: Mapping[str, str]):
        super().__init__(list(words), _KIND, pattern.has_pair)
        self.pattern = pattern
        self.words = dict(words)
        self.word_ids: list[int] = []

    @property
    @override
    def auto_model(self) -> Any:
        """Return ``AutoModelForMaskedLM``."""
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    @override
    def model_kwargs(self) -> dict[str, Any]:
        """Return nothing: the head is the model's own."""
        return {}

    @override
    def use_model(self, model: Any, backend: Any) -> None:
        """Find the words' sub-words; refuse a model without a mask token."""
        if backend.mask_token_id is None:
            raise UserError(
                f"model.path: {type(model).__name__} has no mask token, expected an encoder with one"
            )
        self.word_ids = word_ids(self.words, backend)

    @override
    def pack(self, model: Any, layout: Layout, kernels: Kernels = "auto") -> PackedModel:
        """Return a model that fills gaps."""
        return Task.pack(self, model, layout, kernels)

    @override
    def cut_findings(
        self, name: str, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> Iterable[Finding]:
        """Return how many texts do not fit with the pattern."""
        empty = dict.fromkeys((TEXT, PAIR), "")
        around = len(self.pattern.tokenize(empty, tokenizer, max_length)[0])
        special = len(tokenizer.backend(*[""] * (1 + self.has_pairs))["input_ids"])  # of texts alone
        return super().cut_findings(name, examples, tokenizer, max_length - around + special)

    @override
    def _sequence(
        self, example: Example, index: int, tokenizer: Tokenizer, max_length: int
    ) -> TokenizedSequence:
        texts = dict(zip((TEXT, PAIR), self._texts(example), strict=False))
        ids, place = self.pattern.tokenize(texts, tokenizer, max_length)
        labels = [IGNORE_INDEX] * len(ids)
        # A text without a label has one too: it says where the gap is.
        known = self._index.get(self._read(example), 0) if "label" in example.fields else 0
        labels[place] = self.word_ids[known]
        return TokenizedSequence(ids, labels, index)

    @override
    def outputs(self, model: PackedModel, batch: Batch) -> list[TextOutput]:
        """Return the logits of the classes' words for every text; see :class:`TextOutput`."""
        from fangyan.models.packed import label_places

        scores = model.at_labels(batch, lambda logits, _: logits[:, self.word_ids]).cpu().numpy()
        hidden = None
        if self._keep_hidden:
            hidden = model.head_inputs(batch).flatten(0, 1)[label_places(batch)].float().cpu().numpy()
        return [
            TextOutput(sequence.example, scores[i], None if hidden is None else hidden[i])
            for i, sequence in enumerate(batch.sequences)
        ]

    @property
    @override
    def usage_note(self) -> str:
        """Return the pattern and the words."""
        words = ", ".join(f"{word} ({label})" for label, word in self.words.items())
        return (
            f"It fills the gap of a pattern, {self.pattern.pattern!r}, where {{gap}} is the mask token; the "
            f"most likely of these words says the class: {words}. fangyan predict does so."
        )

    @override
    def export_config(self) -> dict[str, Any]:
        """Return the pattern, and each class with its word and sub-word: in a list, which keeps its order."""
        rows = [[*pair, own] for pair, own in zip(self.words.items(), self.word_ids, strict=True)]
        return {"pattern": self.pattern.pattern, "words": rows}
