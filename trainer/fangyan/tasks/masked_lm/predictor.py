"""A trained masked language model in use: text with gaps in, the words for them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from typing_extensions import override

from fangyan.data.packing import collate
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence, Tokenizer
from fangyan.device import device
from fangyan.errors import UserError
from fangyan.models.packed import PackedModel
from fangyan.tasks.predictor import Prediction, Predictor

# Candidates that are returned for a gap.
_CANDIDATES = 5
# Texts that are filled together.
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Filled(Prediction):
    """A text with its gaps filled in.

    Attributes:
        text: with the mask token where something is missing.
        filled: with the most likely sub-word in each place.
        candidates: of each place, the most likely sub-words with their probabilities.
    """

    text: str
    filled: str
    candidates: tuple[tuple[tuple[str, float], ...], ...]

    @override
    def pieces(self) -> Iterator[str]:
        """Yield the text as it is filled in."""
        yield self.filled

    @override
    def record(self) -> dict[str, Any]:
        """Return text, filled text and candidates."""
        rounded = [[[token, round(share, 4)] for token, share in place] for place in self.candidates]
        return {"text": self.text, "filled": self.filled, "candidates": rounded}


class MaskFiller(Predictor):
    """A model that fills in what is hidden; see :class:`fangyan.tasks.task.Predictor`.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        max_length: most sub-words of a text.
    """

    def __init__(self, model: PackedModel, tokenizer: Tokenizer, max_length: int):
        self._model = model
        self._tokenizer = tokenizer
        self._max_length = max_length

    @override
    def predict(self, texts: Iterable[str]) -> list[Filled]:
        """Fill in each text, which has the tokenizer's mask token, such as ``[MASK]``, for each gap."""
        return list(self.stream(texts))

    @override
    def stream(
        self, texts: Iterable[str], *, interactive: bool = False, options: Mapping[str, Any] | None = None
    ) -> Iterator[Filled]:
        """Yield texts; see :class:`fangyan.tasks.task.Predictor`. There are no options."""
        for name in options or {}:
            raise UserError(f"{name}: is for models that write on, found one that fills gaps")
        source = iter(texts)
        while chunk := list(islice(source, 1 if interactive else _CHUNK)):
            yield from self._fill(chunk)

    def _sequence(self, text: str, index: int) -> TokenizedSequence:
        backend, mask_id = self._tokenizer.backend, self._tokenizer.mask_id
        ids = backend(text)["input_ids"]
        if mask_id not in ids:
            raise UserError(f"predict: {text[:60]!r} has no {backend.mask_token}, expected one for each gap")
        if len(ids) > self._max_length:
            raise UserError(
                f"predict: a text of {len(ids):,} sub-words, expected {self._max_length:,} at most"
            )
        return TokenizedSequence(ids, [IGNORE_INDEX] * len(ids), index)

    @torch.no_grad()
    def _fill(self, texts: list[str]) -> Iterator[Filled]:
        sequences = [self._sequence(text, i) for i, text in enumerate(texts)]
        batch = collate(sequences, self._tokenizer.pad_id, self._model.row_width).to(device())
        logits = self._model.split_logits(self._model.logits(batch), batch)
        for text, sequence, logits_TV in zip(texts, sequences, logits, strict=True):
            yield self._filled(text, sequence, logits_TV)

    def _filled(self, text: str, sequence: TokenizedSequence, logits_TV: torch.Tensor) -> Filled:
        backend, mask_id = self._tokenizer.backend, self._tokenizer.mask_id
        places = [i for i, token in enumerate(sequence.input_ids) if token == mask_id]
        shares, found = logits_TV[places].double().softmax(-1).topk(_CANDIDATES)
        candidates = tuple(
            tuple(zip(map(str, backend.convert_ids_to_tokens(ids)), row, strict=True))
            for ids, row in zip(found.tolist(), shares.tolist(), strict=True)
        )
        filled = list(sequence.input_ids)
        for place, ids in zip(places, found.tolist(), strict=True):
            filled[place] = ids[0]
        pieces = text.split(backend.mask_token)
        if len(pieces) == len(places) + 1:  # between the gaps the text stays as it is
            joined = pieces[0]
            for ids, piece in zip(found.tolist(), pieces[1:], strict=True):
                joined += backend.decode(ids[:1]).strip() + piece
        else:
            joined = backend.decode(filled, skip_special_tokens=True)
        return Filled(text, joined, candidates)
