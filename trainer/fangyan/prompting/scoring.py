"""The probability that a causal model writes each of some words after a prompt.

Words are scored whole, as the product of all their sub-words' probabilities; where others begin with a word,
the model must not go on as they do. What all prompts begin with is computed once, then each prompt, then
what differs between the words.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fangyan.data.tokenization import Tokenizer
from fangyan.errors import UserError
from fangyan.suggestions import did_you_mean

# Sub-words of a batch, those that are kept of what prompts begin with included.
BATCH_TOKENS = 8192
# Of those, sub-words that have logits: of a vocabulary of 50,000 these take 200 MB.
LOGIT_TOKENS = 1024
# How far log-probabilities may be apart that are computed in pieces, and at once.
_SAME = 1e-2
# The least probability of not going on as a longer word does.
_LEAST = 1e-6


class LabelWords:
    """The words that stand for labels, as sub-words.

    Args:
        labels: of the task.
        words: for each label a word, by default the label itself.
        tokenizer: of the model.

    Attributes:
        ids: of each label's word, as it follows a text and a space.

    Raises:
        UserError: for a word of no label, or two words that are the same for the model.
    """

    def __init__(self, labels: Sequence[str], words: Mapping[str, str], tokenizer: Tokenizer):
        for label in words:
            if label not in labels:
                known = ", ".join(labels[:8])
                hint = did_you_mean(label, labels)
                raise UserError(f"--words: {label!r} is no label of the data, expected some of {known}{hint}")
        self.words = [words.get(label, label) for label in labels]
        self.ids = [tuple(tokenizer.continuation(f" {word}")) for word in self.words]
        for word, ids in zip(self.words, self.ids, strict=True):
            if not ids or (tokenizer.unknown_id in ids and tokenizer.unknown_id != tokenizer.pad_id):
                raise UserError(
                    f"--words: {word!r} is unknown to the model's tokenizer, expected another word"
                )
        ordered = sorted(range(len(self.ids)), key=lambda i: self.ids[i])
        for i, j in pairwise(ordered):
            if self.ids[i] == self.ids[j]:
                raise UserError(
                    f"--words: {self.words[i]!r} and {self.words[j]!r} are the same for the model, expected "
                    "words that differ"
                )
        # The sub-words by which longer words go on behind each word.
        self.longer = [
            sorted({other[len(ids)] for other in self.ids if len(other) > len(ids) and begins(ids, other)})
            for ids in self.ids
        ]

    @property
    def stems(self) -> list[tuple[int, ...]]:
        """Return what words begin with: all but their last sub-word; no stem begins another."""
        stems = sorted({ids[:-1] for ids in self.ids})
        return [
            stem
            for stem, after in zip(stems, [*stems[1:], None], strict=True)
            if after is None or not begins(stem, after)
        ]


def begins(ids: Sequence[int], others: Sequence[int]) -> bool:
    """Return whether some sub-words are the first of others."""
    return others[: len(ids)] == ids


class WordScorer:
    """Scores words after prompts that share their beginning.

    Args:
        model: of transformers, causal, in evaluation mode.
        words: to score.
        beginning: sub-words that all prompts begin with; it may be empty.
        pad_id: of the tokenizer.
    """

    def __init__(self, model: Any, words: LabelWords, beginning: Sequence[int], pad_id: int):
        self._model = model
        self._words = words
        self._beginning = list(beginning)
        self._pad_id = pad_id
        self._device = next(model.parameters()).device
        self._stems = words.stems
        self._cache: Any = None
        self._is_tried = False

    @torch.no_grad()
    def score(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return the log-probability of each word after each prompt, (N, C).

        Args:
            prompts: sub-words that follow the beginning, at least one.
        """
        if prompts and not self._is_tried:
            self._cache, self._is_tried = self._keep_beginning(prompts[0]), True
        scores_NC = np.empty((len(prompts), len(self._words.ids)), dtype=np.float32)
        for members in self._batches([len(prompt) for prompt in prompts]):
            chosen = [prompts[i] for i in members]
            whole = self._cache is None
            score = self._score_whole(chosen) if whole else self._score_kept(chosen, self._cache)
            scores_NC[members] = score.cpu().numpy()
        return scores_NC

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield which prompts are scored together, shortest first.

        What goes on behind prompts would follow the padding of shorter ones: they are of one length then.

        Args:
            lengths: sub-words of each prompt.
        """
        stems, longest = len(self._stems), max(map(len, self._stems))
        batch: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            width, rows = lengths[i], len(batch) + 1
            kept = rows * stems * (len(self._beginning) + width + longest)
            logits = rows * max(width, stems * longest)
            other = longest > 0 and batch and lengths[batch[0]] != width
            if batch and (other or kept > BATCH_TOKENS or logits > LOGIT_TOKENS):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _keep_beginning(self, prompt: Sequence[int]) -> Any:
        """Return the model's cache behind the beginning; None if it is not what whole sequences are.

        Recurrent layers go on by one sub-word at a time, if at all, and some take no notice of their state
        where there are more; an adapter's own tokens would be there again.

        Args:
            prompt: to compare.
        """
        adapter = getattr(self._model, "active_peft_config", None)
        if not self._beginning or (adapter is not None and adapter.is_prompt_learning):
            return None
        beginning = torch.tensor([self._beginning], device=self._device)
        try:
            cache = self._model(input_ids=beginning, use_cache=True).past_key_values
            found = self._score_kept([prompt], cache)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return None
        return cache if torch.allclose(found, self._score_whole([prompt]), atol=_SAME, rtol=0.0) else None

    def _score_kept(self, prompts: Sequence[Sequence[int]], cache: Any) -> Tensor:
        """Return scores by what the model keeps of the beginning, and of prompts, (B, C)."""
        outputs = self._model(
            input_ids=self._padded(prompts), past_key_values=_repeated(cache, len(prompts)), use_cache=True
        )
        first_BV = _last(outputs.logits, prompts)
        behind: dict[tuple[int, ...], Tensor] = {}
        if any(self._stems):
            rows = _repeated(outputs.past_key_values, len(self._stems))
            stems_RL = self._padded(self._stems).repeat(len(prompts), 1)
            logits = self._model(input_ids=stems_RL, past_key_values=rows, use_cache=True).logits
            logs = logits.float().log_softmax(-1).unflatten(0, (len(prompts), len(self._stems)))
            behind = {stem: logs[:, i] for i, stem in enumerate(self._stems)}
        return self._joined(first_BV, behind)

    def _score_whole(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return scores by forwards of whole sequences, (B, C), of models that keep nothing to go on from."""
        first_BV: Tensor | None = None
        behind: dict[tuple[int, ...], Tensor] = {}
        for stem in self._stems:
            rows = [[*self._beginning, *prompt, *stem] for prompt in prompts]
            logits = self._model(input_ids=self._padded(rows)).logits
            if not stem:
                first_BV = _last(logits, rows)
                continue
            logs = logits[:, -1 - len(stem) :].float().log_softmax(-1)  # rows are of one length
            first_BV, behind[stem] = logs[:, 0], logs[:, 1:]
        assert first_BV is not None
        return self._joined(first_BV, behind)

    def _joined(self, first_BV: Tensor, behind: Mapping[tuple[int, ...], Tensor]) -> Tensor:
        """Return the sums of each word's sub-words.

        Args:
            first_BV: log-probabilities behind the prompts.
            behind: those behind each sub-word of a stem, (B, L, V).
        """
        columns = []
        for ids, longer in zip(self._words.ids, self._words.longer, strict=True):
            column = first_BV[:, ids[0]]
            known = ids if longer else ids[:-1]
            stem = next(stem for stem in self._stems if begins(known, stem))
            for place, subword in enumerate(ids[1:]):
                column = column + behind[stem][:, place, subword]
            if longer:
                goes_on_B = behind[stem][:, len(ids) - 1, longer].exp().sum(1)
                column = column + torch.log1p(-goes_on_B.clamp(max=1.0 - _LEAST))
            columns.append(column)
        return torch.stack(columns, 1)

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return rows with padding behind them, which nothing before it sees, (R, L)."""
        longest = max(map(len, rows))
        padded = [[*row, *[self._pad_id] * (longest - len(row))] for row in rows]
        return torch.tensor(padded, device=self._device)


def _last(logits_RLV: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-probabilities behind each row's last sub-word, (R, V).

    Args:
        logits_RLV: of rows with padding behind them; an adapter's own tokens may stand before.
        rows: without padding.
    """
    longest = max(map(len, rows))
    places = [logits_RLV.shape[1] - 1 - longest + len(row) for row in rows]
    chosen_RV = logits_RLV[range(len(rows)), places]
    return chosen_RV.float().log_softmax(-1)


def _repeated(cache: Any, times: int) -> Any:
    """Return a copy of a cache in which every row is there several times, side by side."""
    copied = copy.deepcopy(cache)
    copied.batch_repeat_interleave(times)
    return copied


def calibrated(scores_NC: NDArray[np.float32], free_MC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log-probabilities over the labels, divided by what the model gives where nothing is said.

    Contextual calibration (Zhao et al. 2021, arXiv 2102.09690, section 5): with p the mean of the
    probabilities of content-free prompts, W is diag(p)^-1.

    Args:
        scores_NC: of prompts.
        free_MC: of the content-free ones.
    """
    free_C = np.log(np.exp(normalized(free_MC).astype(np.float64)).mean(0) + 1e-30)
    return normalized((normalized(scores_NC) - free_C).astype(np.float32))


def normalized(scores_NC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log-probabilities over the labels alone, (N, C)."""
    normal_NC: NDArray[np.float32] = scores_NC - np.logaddexp.reduce(scores_NC, axis=1, keepdims=True)
    return normal_NC
