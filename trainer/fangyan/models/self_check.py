"""Whether a model computes of a batch what it computes of each sequence alone: found by trying.

A layout that lets sequences or padding reach each other trains another model than the one that is used
later, and nothing else shows it: linear attention, state-space and convolution layers ignore a mask. So two
short sequences are run alone and together, before the first step and whenever a model is loaded, and the
loss is compared with the cross-entropy of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fangyan.data.packing import Batch, collate
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence
from fangyan.errors import UserError
from fangyan.models.packed import Layout, PackedModel
from fangyan.models.structure import evaluating, max_length

# Attention windows up to here are exceeded by the longer of the two sequences.
_LONGEST_WINDOW = 256


class SelfCheck:
    """Compares what a model computes of a batch with what it computes of each sequence alone.

    Differences are relative, of the logits of one token, and the largest counts. The budget is a multiple of
    what one rounding step in the output of each module does to the sequences alone. Among the 49 families of
    ``bench/self_check.py`` in float32 the largest difference between right layouts is 0.8 of that step's, on
    a CPU and on an H100, and the smallest leak 22,000 and 44,000 times it. In 16 bits right layouts differ by
    up to 0.3 of it, and leaks by as little as 0.5: there they are also looked for by their cause. A trained
    ELECTRA's own kernels, which sum in another order for each shape, have exceeded 2 on an H100. (Results:
    ``self_check.json`` in ``bench/results``, of ``intel-xeon-avx512-2-cores`` and ``nvidia-h100-80gb-hbm3``.)

    Args:
        model: in any layout, on any device.

    Attributes:
        alone: the logits of each sequence, (T, C); (1, C) where sequences are classified as a whole.
        step: what one rounding step does to them.

    Raises:
        UserError: if the logits are not finite, or others each time.
    """

    def __init__(self, model: PackedModel):
        self._model = model
        self._generator = torch.Generator().manual_seed(0)
        self._sequences = [self._sequence(length) for length in _lengths(model.base)]
        with evaluating(model):
            model.use_layout("unpadded")
            self.alone = [self._logits([sequence])[0] for sequence in self._sequences]
            if not all(logits.isfinite().all() for logits in self.alone):
                raise UserError(f"model.path: the logits of {self._name} are not finite, expected numbers")
            with self._rounding_once_more():
                rounded = [self._logits([sequence])[0] for sequence in self._sequences]
            again = self._logits(self._sequences[:1])
        self.step = difference(rounded, self.alone)
        self._budget = self.step * (16 if self.alone[0].element_size() == 4 else 2)
        # Of a model that draws random numbers most of the step is theirs.
        if (found := difference(again, self.alone[:1])) > self.step / 2:
            raise UserError(
                f"model.path: the logits of {self._name} differ by {found:.1g} from one forward to the next, "
                "expected the same"
            )

    @property
    def _name(self) -> str:
        return type(self._model.base).__name__

    def choose_layout(self, layouts: Sequence[Layout]) -> list[str]:
        """Put the model into the first layout that keeps sequences apart; return why not the ones before.

        Raises:
            UserError: if there is none.
        """
        reasons: list[str] = []
        for layout in layouts:
            with evaluating(self._model):
                reason = self._wrong_with(layout)
            if reason is None:
                return reasons
            reasons.append(reason)
        raise UserError(f"model.path: {self._name} cannot be trained: {reasons[-1]}")

    def _wrong_with(self, layout: Layout) -> str | None:
        """Return what is wrong with a layout, which the model is in afterwards; None if nothing is."""
        try:
            self._model.use_layout(layout)
            together = self.logits_together()
            found = difference(together, self.alone)
            if found > self._budget:
                return f"the logits of {self._name} differ by {found:.1g} from those of each sequence alone"
            # What 16 bits round away here, training may not: there a leak is seen by its cause.
            if self.alone[0].element_size() < 4 and layout != "unpadded" and self.leaks(together):
                return f"the logits of {self._name} depend on the other sequences of a batch"
        except UserError as error:
            return str(error).removeprefix("train.packing: ").partition("; expected")[0]
        except Exception as error:  # a model that cannot do something says so in any way
            return " ".join(str(error).split())[:150] or type(error).__name__
        return None

    def logits_together(self) -> list[Tensor]:
        """Return the logits of each sequence, (T, C), of all in one batch in the model's layout."""
        return self._logits(self._sequences)

    def leaks(self, together: list[Tensor]) -> bool:
        """Return whether other tokens in one sequence, or in the padding, move the logits of the other.

        Rows of a batch of equal lengths tell what a mixture of experts rounds differently.
        """
        moved = max(difference([self._with_others(i)[i]], [together[i]]) for i in range(len(self._sequences)))
        first = self._sequences[0]
        layout = self._model.layout
        self._model.use_layout("padded")
        pairs = [self._logits([first, self._other(first)])[0] for _ in range(2)]
        self._model.use_layout(layout)
        return moved > 2 * difference(pairs[:1], pairs[1:])

    def _with_others(self, kept: int) -> list[Tensor]:
        """Return the logits where all sequences but one, and the padding, are of other tokens."""
        sequences = [
            sequence if i == kept else self._other(sequence) for i, sequence in enumerate(self._sequences)
        ]
        return self._logits(sequences, pad_id=self._sequences[0].input_ids[0])

    def check_loss(self) -> None:
        """Refuse a model whose loss is not the cross-entropy of its logits, in the layout that it is in.

        A change of logits by d changes a token's loss by sqrt(2) d at most, as the gradient is p - 1(label).

        Raises:
            UserError: if it is another.
        """
        self._check_loss(self._sequences)
        if all(sequence.alignment is None and not sequence.targets for sequence in self._sequences):
            # Where few are labelled, the others do not reach the head.
            self._check_loss([_with_few_labels(sequence) for sequence in self._sequences])

    def _check_loss(self, sequences: Sequence[TokenizedSequence]) -> None:
        model = self._model
        with evaluating(model):
            batch = self._batch(sequences)
            loss = float(model.loss(batch).double())
            logits = torch.cat(model.split_logits(model.logits(batch), batch)).double()
        expected = model.expected_loss(logits, batch)
        labelled = batch.num_valid / len(logits)
        budget = self._budget * math.sqrt(2) * float(logits.norm(dim=-1).sum()) * labelled
        if not abs(loss - float(expected)) <= budget:
            raise UserError(
                f"model.path: the loss of {self._name} is {loss:.6g}, expected {float(expected):.6g}, the "
                f"{model.loss_name} of its logits"
            )

    def _sequence(self, length: int) -> TokenizedSequence:
        ids = self._ids(length)
        return self._model.random_labels(TokenizedSequence(ids, [], 0), self._generator)

    def _other(self, sequence: TokenizedSequence) -> TokenizedSequence:
        return replace(sequence, input_ids=self._ids(len(sequence.input_ids)))

    def _ids(self, length: int) -> list[int]:
        """Return random ids of the vocabulary: none that a model treats in its own way."""
        base = self._model.base
        configs = (base.config, base.config.get_text_config())
        special = {
            value
            for config in configs
            for key, value in config.to_dict().items()
            if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)
        }
        size = getattr(configs[1], "vocab_size", 128)  # without one they are characters
        drawn = torch.randint(size, (8 * length + len(special),), generator=self._generator).tolist()
        return [token for token in drawn if token not in special][:length]

    def _logits(self, sequences: Sequence[TokenizedSequence], pad_id: int | None = None) -> list[Tensor]:
        """Return the logits of each sequence, (T, C)."""
        batch = self._batch(sequences, pad_id)
        return self._model.split_logits(self._model.logits(batch), batch)

    def _batch(self, sequences: Sequence[TokenizedSequence], pad_id: int | None = None) -> Batch:
        if pad_id is None:
            pad_id = getattr(self._model.base.config.get_text_config(), "pad_token_id", None) or 0
        device = next(self._model.parameters()).device
        return collate(sequences, pad_id, self._model.row_width).to(device)

    @contextmanager
    def _rounding_once_more(self) -> Iterator[None]:
        """Move each output of each module by a rounding step, up or down."""

        def step(output: Any) -> Any:
            if isinstance(output, tuple) and output:
                return (step(output[0]), *output[1:])
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return output
            signs = torch.randint(2, output.shape, generator=self._generator, dtype=torch.int8) * 2 - 1
            return output * (1 + torch.finfo(output.dtype).eps * signs.to(output))

        hooks = [
            module.register_forward_hook(lambda _module, _inputs, output: step(output))
            for module in self._model.model.modules()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _with_few_labels(sequence: TokenizedSequence) -> TokenizedSequence:
    few = [label if i % 4 == 1 else IGNORE_INDEX for i, label in enumerate(sequence.labels)]
    return replace(sequence, labels=few)


def _lengths(model: Any) -> tuple[int, int]:
    """Return the lengths of the two sequences; the second exceeds a short attention window or chunk."""
    config = model.config.get_text_config()
    reaches = [getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")]
    reach = max([10, *(reach for reach in reaches if reach <= _LONGEST_WINDOW)])
    longest = max_length(model, None)
    return min(11, longest), min(reach + 13, longest)


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference of a token's logits, relative to their norm; infinite if not finite."""
    ratios = []
    for left, right in zip(found, expected, strict=True):
        norm = right.double().norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
        ratios.append(((left.double() - right.double()).norm(dim=-1) / norm).max())
    return float(torch.stack(ratios).nan_to_num(math.inf).max())
