"""A model as an ONNX graph, run by ONNX Runtime where a task expects a packed model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fangyan.data.packing import Batch, word_segments
from fangyan.data.tokenization import IGNORE_INDEX
from fangyan.errors import UserError
from fangyan.models.packed import averaged, label_places
from fangyan.packages import require

# The graph's file in its folder; its weights are in one beside it, since protobuf ends at 2 GB.
GRAPH = "model.onnx"
T = TypeVar("T")


class GraphModel:
    """Runs an exported graph on the CPU; it has what tasks use of :class:`fangyan.models.packed.PackedModel`.

    Sequences are run one by one. In 8 bits the scale of activations is that of all that is run at once,
    padding too: what a sentence gets would depend on its neighbours. And on few cores a batch is no faster.

    Args:
        folder: with the graph; see :data:`GRAPH`.

    Attributes:
        base: None: there is no model of transformers.
        row_width: as of the layout ``padded``, the only one that a graph takes.

    Raises:
        UserError: if ONNX Runtime is not installed.
        ValueError: if the file is damaged.
    """

    base: ClassVar[None] = None
    row_width: ClassVar[int] = 0

    def __init__(self, folder: Path):
        require("onnxruntime", f"{folder / GRAPH}", "onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # As many threads as PyTorch has: by default ONNX Runtime takes every core of the machine.
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                folder / GRAPH, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its classes are of C++, and have no common name
            raise ValueError(f"{GRAPH}: {' '.join(str(error).split())[:300]}") from None
        self._inputs = [value.name for value in self._session.get_inputs()]
        outputs = {value.name for value in self._session.get_outputs()}
        # Of a span there are two: whether it starts at a sub-word, and whether it ends there.
        self._outputs = ["logits"] if "logits" in outputs else ["start_logits", "end_logits"]

    def __call__(self, compute: Callable[[Any], T]) -> T:
        """Return ``compute(self)``; see :meth:`fangyan.models.packed.PackedModel.forward`."""
        return compute(self)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of a batch: (R, W, C), or (R, C) where sequences are classified as a whole."""
        tensors, found = self._tensors(batch), []
        for row, sequence in enumerate(batch.sequences):
            length = len(sequence.input_ids)
            # A graph takes one sub-word at least, and an empty text may have none: it gets padding's.
            place = slice(row, row + 1), slice(max(length, 1))
            logits = self._run({name: value[place] for name, value in tensors.items()})[0]
            found.append(logits[:length] if logits.ndim == 2 else logits)
        if found[0].ndim == 1:
            return torch.stack(found)
        return averaged(nn.utils.rnn.pad_sequence(found, batch_first=True), batch, word_segments(batch))

    def padded_logits(self, batch: Batch) -> Tensor:
        """Return the logits of a batch that is run at once, as others may do."""
        found = self._run(self._tensors(batch))
        return found if found.ndim == 2 else averaged(found, batch, word_segments(batch))

    def _tensors(self, batch: Batch) -> dict[str, Tensor]:
        found = {"input_ids": batch.input_ids, "attention_mask": (batch.sequence_ids > 0).long()}
        if "token_type_ids" in self._inputs:
            given = batch.token_type_ids
            found["token_type_ids"] = torch.zeros_like(batch.input_ids) if given is None else given
        # Of a batch of empty texts alone, too.
        missing = max(0, 1 - batch.input_ids.shape[1])
        return {name: nn.functional.pad(value.cpu(), (0, missing)) for name, value in found.items()}

    def _run(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the graph's logits of rows: (R, W, C), or (R, C)."""
        arrays = {name: value.numpy() for name, value in inputs.items()}
        found = [torch.from_numpy(values) for values in self._session.run(self._outputs, arrays)]
        return found[0] if len(found) == 1 else torch.stack(found, -1)

    def at_labels(self, batch: Batch, compute: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Return what a function makes of the logits at labels, (P, ...); see :class:`PackedModel`."""
        places = label_places(batch).cpu()
        return compute(self.logits(batch).flatten(0, 1)[places].float(), slice(0, len(places)))

    def split_logits(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        """Return the logits of each sequence of a batch: (T, C), or (1, C) of a whole one."""
        if logits.ndim == 2:
            return list(logits.split(1))
        return [row[: len(sequence.input_ids)] for row, sequence in zip(logits, batch.sequences, strict=True)]

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of a batch of sub-words, summed over its labels, ()."""
        return nn.functional.cross_entropy(
            self.logits(batch).flatten(0, 1),
            batch.labels.cpu().flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )


def has_graph(folder: Path) -> bool:
    """Return whether a folder has a model as a graph."""
    return (folder / GRAPH).is_file()


def refuse_graph(folder: Path, what: str) -> None:
    """Refuse an exported graph where the model itself is needed.

    Args:
        folder: of a model.
        what: needs it, for the message.

    Raises:
        UserError: if the folder has a graph.
    """
    if has_graph(folder):
        raise UserError(f"{folder}: an ONNX graph, but {what} needs the model itself, expected its run")
