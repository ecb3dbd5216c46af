"""A model as an ONNX graph, run by ONNX Runtime where a task expects a packed model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fangyan.data.packing import Batch, word_segments
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence
from fangyan.errors import UserError
from fangyan.models.packed import averaged
from fangyan.packages import require

# The graph's file in its folder; its weights are in one beside it, since protobuf ends at 2 GB.
GRAPH = "model.onnx"
T = TypeVar("T")


class GraphModel:
    """Runs an exported graph on the CPU; it has what tasks use of :class:`fangyan.models.packed.PackedModel`.

    Sequences are run one by one. In 8 bits the scale of activations is that of all that is run at once, padding
    too: what a sentence gets would depend on its neighbours. And on few cores a batch is no faster.

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

    def run(self, sequence: TokenizedSequence) -> Tensor:
        """Return what the graph has of one sequence: its logits, (T, C), or (C,) of a whole one."""
        ids = np.array([sequence.input_ids], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if "token_type_ids" in self._inputs:
            inputs["token_type_ids"] = np.array([sequence.segments or [0] * ids.shape[1]], dtype=np.int64)
        found = [torch.from_numpy(values[0]) for values in self._session.run(self._outputs, inputs)]
        return found[0] if len(found) == 1 else torch.stack(found, -1)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of a batch: (R, W, C), or (R, C) where sequences are classified as a whole."""
        found = [self.run(sequence) for sequence in batch.sequences]
        if found[0].ndim == 1:
            return torch.stack(found)
        return averaged(nn.utils.rnn.pad_sequence(found, batch_first=True), batch, word_segments(batch))

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
