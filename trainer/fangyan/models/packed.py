"""A transformers model that takes packed batches: it returns their loss, or their logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from fangyan.data.packing import ROW_WIDTH, Batch, split_by_length, word_segments
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence
from fangyan.errors import UserError
from fangyan.models import attention
from fangyan.models.loss_head import (
    Kernels,
    LogitTransform,
    LossOptions,
    find_logit_transform,
    install_loss_head,
)
from fangyan.models.masks import packed_masks
from fangyan.models.selection import HiddenStates
from fangyan.models.structure import is_causal, num_outputs, position_offset

# Labels whose logits are in memory at once: 100 MB of a vocabulary of 49,000, four times over.
_PIECE = 128

Layout = Literal["varlen", "rows", "padded", "unpadded"]
T = TypeVar("T")


class PackedModel(nn.Module):
    """Runs a model on batches of any layout.

    Args:
        model: a transformers model with a linear head, or PEFT's around one.
        layout: see :meth:`use_layout`.
        kernels: implementation of the head's loss.

    Attributes:
        layout: of the batches that it takes.
        takes_segments: whether the model is told which of a pair of texts a sub-word is of.
        messages: for the user, on what this model cannot do as fast as others.

    Raises:
        UserError: if packed sequences of this model could not be kept apart.
    """

    def __init__(self, model: Any, layout: Layout, kernels: Kernels = "auto"):
        super().__init__()
        self.model = model
        self.head = install_loss_head(model, num_outputs(self.base), kernels)
        if self.base.config._attn_implementation == attention.NAME:  # packed before: it asks for boundaries
            self.base.set_attn_implementation("sdpa")
        self.logit_transform = self._find_logit_transform()
        self._hidden = HiddenStates(self.base, self.head)
        self._position_offset = position_offset(self.base)
        self._causal = is_causal(self.base)
        parameters = inspect.signature(self.base.forward).parameters
        self._has_cache = "use_cache" in parameters
        segments = getattr(self.base.config, "type_vocab_size", 2)
        self.takes_segments = "token_type_ids" in parameters and segments > 1
        self._own_attention = self.base.config._attn_implementation
        self.use_layout(layout)

    def use_layout(self, layout: Layout) -> None:
        """Take batches of another layout from now on.

        Args:
            layout: ``varlen`` (one row, variable-length kernel), ``rows`` (short rows, masks between
                sequences), ``padded`` (one sequence per row) or ``unpadded`` (the same, and a forward for
                each length among them).

        Raises:
            UserError: if packed sequences of this model could not be kept apart.
        """
        self.layout = layout
        self.messages: list[str] = []
        if self.logit_transform is None:
            self.messages.append(
                f"{type(self.base).__name__} transforms its logits in a way that the fused loss does not: "
                "plain cross-entropy takes their memory"
            )
        if layout in ("varlen", "rows"):
            self._choose_attention()
        elif self.base.config._attn_implementation != self._own_attention:
            self.base.set_attn_implementation(self._own_attention)

    def _find_logit_transform(self) -> LogitTransform | None:
        return find_logit_transform(self.model, self.head)

    def _choose_attention(self) -> None:
        model = self.base
        name = type(model).__name__
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise UserError(
                f"train.packing: {name} takes no position_ids, so sequences cannot share "
                "a row; expected train.packing=false"
            )
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
        if self.layout == "varlen" and "chunked_attention" in kinds:
            raise UserError(
                f"train.packing: {name} attends within chunks, which the variable-length kernel does not; "
                "expected train.packing=false"
            )
        wanted = attention.NAME if self.layout == "varlen" else "sdpa"
        try:
            model.set_attn_implementation(wanted)
        except ValueError as error:
            if self.layout == "varlen":  # no mask is given there: plain attention would mix the sequences
                raise UserError(
                    f"train.packing: {name} cannot take the variable-length attention "
                    f"({' '.join(str(error).split())[:120]}); expected train.packing=false"
                ) from None
            # Gemma 2 caps its attention's logits; the same mask keeps sequences apart.
            wanted = "eager"
            model.set_attn_implementation(wanted)
            self.messages.append(f"{name} has no fused attention: plain attention is slower and takes memory")
        if model.config._attn_implementation != wanted:
            raise UserError(
                f"train.packing: {name} has its own attention, which cannot keep packed "
                "sequences apart; expected train.packing=false"
            )

    @property
    def base(self) -> Any:
        """Return the transformers model itself."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def use_gradient_checkpointing(self) -> None:
        """Enable activation checkpointing: layers keep their input alone and are computed twice."""
        base = self.base
        enable = getattr(base, "activation_checkpointing_enable", None)  # its name since transformers 5.20
        (enable or base.gradient_checkpointing_enable)({"use_reentrant": False})
        # With frozen embeddings a layer's input has no gradient, and an adapter in it would get none.
        base.enable_input_require_grads()
        if hasattr(base.config, "use_cache"):
            base.config.use_cache = False

    @property
    def row_width(self) -> int | None:
        """Return what :func:`fangyan.data.packing.collate` takes for this layout."""
        return {"rows": ROW_WIDTH, "varlen": None, "padded": 0, "unpadded": 0}[self.layout]

    def forward(self, compute: Callable[[PackedModel], T]) -> T:
        """Return ``compute(self)``.

        Under DeepSpeed every use of the model has to be a forward of its engine, which gathers ZeRO-3's
        weights: ``engine(lambda model: model.loss(batch))``.
        """
        return compute(self)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of a batch, (R, W, C)."""
        return self._by_length(batch, self._logits)

    def head_inputs(self, batch: Batch) -> Tensor:
        """Return what the head reads of a batch, (R, W, H): the means of words where they are classified."""
        return self._by_length(batch, self._head_inputs)

    def _by_length(self, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """Return what is computed of a batch, (R, W, D); of a layout without padding, for each length."""
        if self.layout != "unpadded":
            return compute(batch)
        parts = split_by_length(batch)
        found = [compute(part) for _, part in parts]
        joined = found[0].new_zeros(*batch.input_ids.shape, found[0].shape[-1])
        for (rows, part), values in zip(parts, found, strict=True):
            joined[rows, : part.input_ids.shape[1]] = values
        return joined

    def _logits(self, batch: Batch) -> Tensor:
        return averaged(self._run(batch).logits, batch, word_segments(batch))

    def _head_inputs(self, batch: Batch) -> Tensor:
        return averaged(self._taken_by_head(batch), batch, word_segments(batch))

    def _taken_by_head(self, batch: Batch) -> Tensor:
        """Return what the head takes in a forward of a batch, as it is."""
        taken: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _head, inputs: taken.append(inputs[0]))
        try:
            self._run(batch)
        finally:
            handle.remove()
        (hidden,) = taken
        return hidden

    def _run(self, batch: Batch) -> Any:
        """Return the model's outputs for a batch."""
        return self.model(**self._inputs(batch))

    def at_labels(self, batch: Batch, compute: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Return what a function makes of the logits at the labels of a batch, (P, ...).

        Labels are those of the batch's sequences, in their order. Of a large vocabulary, the logits of a few
        are in memory at a time. For use without gradients, in evaluation mode.

        Args:
            batch: of any number of sequences.
            compute: of logits, (p, C), float32, and which of the labels they are of, to a tensor, (p, ...).
        """
        places = label_places(batch)
        spans = [slice(start, start + _PIECE) for start in range(0, len(places), _PIECE)]
        transform, segments = self.logit_transform, word_segments(batch)
        found: list[Tensor] = []

        def read(hidden: Tensor) -> Tensor:
            states = averaged(hidden, batch, segments).flatten(0, -2)
            for span in spans:
                logits = nn.functional.linear(states[places[span]], self.head.weight, self.head.bias)
                assert transform is not None
                found.append(compute(transform(logits).float(), span))
            return hidden.new_zeros(())

        if self.layout == "unpadded" or transform is None or (segments and transform.softcap is not None):
            logits = self.logits(batch).flatten(0, 1)
            found = [compute(logits[places[span]].float(), span) for span in spans]
        else:
            self._head_loss(batch, read)
        return torch.cat(found) if found else places[:0]

    def split_logits(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        """Return the logits of each of a batch's sequences, (T, C)."""
        return [
            logits[row, column : column + len(sequence.input_ids)]
            for sequence, (row, column) in zip(batch.sequences, batch.offsets, strict=True)
        ]

    # What :meth:`expected_loss` computes, for messages.
    loss_name: ClassVar[str] = "cross-entropy"

    def expected_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of a batch that follows from the logits of :meth:`split_logits`, joined, ()."""
        labels = [label for sequence in batch.sequences for label in sequence.labels]
        return nn.functional.cross_entropy(
            logits, torch.tensor(labels, device=logits.device), ignore_index=IGNORE_INDEX, reduction="sum"
        )

    def random_labels(self, sequence: TokenizedSequence, generator: torch.Generator) -> TokenizedSequence:
        """Return a sequence with labels of the model's kind, to try it."""
        shape = (len(sequence.input_ids),)
        labels = torch.randint(num_outputs(self.base), shape, generator=generator).tolist()
        return replace(sequence, labels=labels)

    def loss(self, batch: Batch, divisor: float = 1.0, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross-entropy of a batch, summed over its labels and divided by ``divisor``, ()."""
        if self.layout != "unpadded":
            return self._loss(batch, divisor, label_smoothing)
        losses = [self._loss(part, divisor, label_smoothing) for _, part in split_by_length(batch)]
        return torch.stack(losses).sum()

    def _loss(self, batch: Batch, divisor: float, label_smoothing: float) -> Tensor:
        head, transform = self.head, self.logit_transform
        segments = word_segments(batch)
        # A mean of capped logits is not the capped one of a mean.
        if transform is None or (segments is not None and transform.softcap is not None):
            return self._plain_loss(batch, divisor, label_smoothing)
        chosen = self._labelled_positions(batch) if segments is None else None
        labels = batch.labels if chosen is None else batch.labels.flatten()[chosen]
        options = LossOptions(
            labels, batch.num_valid, divisor, label_smoothing, transform, batch.class_weights
        )
        if chosen is None:
            return self._head_loss(
                batch, lambda hidden: head.loss(averaged(hidden, batch, segments), options)
            )
        width = batch.input_ids.shape[1]
        with self._hidden.choosing(lambda hidden: hidden[:, -width:].flatten(0, 1)[chosen].unsqueeze(0)):
            return self._head_loss(batch, lambda hidden: head.loss(hidden.squeeze(0), options))

    def _head_loss(self, batch: Batch, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what the head computes in a forward of a batch in place of its logits."""
        with self.head.computing(compute) as losses:
            self._run(batch)
        (loss,) = losses
        return loss

    def _labelled_positions(self, batch: Batch) -> Tensor | None:
        """Return where the labels of a batch are, (P,), if its model has layers that need no more; else None.

        The head itself skips what has no label.
        """
        if not self._hidden.can_choose or 2 * batch.num_valid > batch.labels.numel():
            return None
        places = batch.labelled if batch.num_valid else torch.zeros(1, dtype=torch.int64)  # ignored there
        return places.to(batch.labels.device)

    def _plain_loss(self, batch: Batch, divisor: float, label_smoothing: float) -> Tensor:
        """Return the loss of the model's own logits, whatever it does to them."""
        summed = nn.functional.cross_entropy(
            self.logits(batch).flatten(0, 1).float(),
            batch.labels.flatten(),
            weight=batch.class_weights,
            ignore_index=IGNORE_INDEX,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        return summed / divisor

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.input_ids}
        if self._has_cache:
            inputs["use_cache"] = False
        if batch.token_type_ids is not None and self.takes_segments:
            inputs["token_type_ids"] = batch.token_type_ids
        if self.layout == "unpadded":
            return inputs
        if self.layout == "padded":
            inputs["attention_mask"] = (batch.sequence_ids > 0).long()
            return inputs
        inputs["position_ids"] = batch.position_ids + self._position_offset
        if self.layout == "rows":
            inputs["attention_mask"] = packed_masks(
                self.base, batch.sequence_ids, batch.position_ids, self._causal
            )
        else:
            offsets, longest = boundaries(batch)
            inputs.update(
                cu_seq_lens_q=offsets, cu_seq_lens_k=offsets, max_length_q=longest, max_length_k=longest
            )
        return inputs


def averaged(values: Tensor, batch: Batch, segments: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return, of a batch's sub-words, the means of those that are classified together, (..., R, W, D).

    A head is linear: the mean of its outputs is its output of the mean.
    """
    # Prompt tuning puts tokens of its own before every row.
    values = values[..., -batch.input_ids.shape[1] :, :]
    if segments is None:
        return values
    lengths, segment_of = (tensor.to(values.device) for tensor in segments)
    # Unsafe: nobody waits for the device to check the lengths.
    by_place = values.float().flatten(-3, -2).movedim(-2, 0)
    means = torch.segment_reduce(by_place, "mean", lengths=lengths, unsafe=True)
    return means[segment_of].movedim(0, -2).to(values.dtype).reshape(values.shape)


def label_places(batch: Batch) -> Tensor:
    """Return where the labels of a batch's sequences are, in their order, (P,): of all rows in one."""
    width = batch.input_ids.shape[1]
    places = [
        row * width + column + place
        for sequence, (row, column) in zip(batch.sequences, batch.offsets, strict=True)
        for place, label in enumerate(sequence.labels)
        if label != IGNORE_INDEX
    ]
    return torch.tensor(places, dtype=torch.int64, device=batch.input_ids.device)


def boundaries(batch: Batch) -> tuple[Tensor, int]:
    """Return the offsets of the sequences of a batch with one row, as variable-length kernels take them.

    They come from the lengths that the host knows: asking the device would wait for it in every step.

    Returns:
        Offsets, (sequences + 1,), int32, with the row's empty end as a sequence; and the longest length.
    """
    lengths = [len(sequence.input_ids) for sequence in batch.sequences]
    if empty := batch.input_ids.shape[1] - sum(lengths):
        lengths.append(empty)
    offsets = [0, *accumulate(lengths)]
    return torch.tensor(offsets, dtype=torch.int32, device=batch.input_ids.device), max(lengths)
