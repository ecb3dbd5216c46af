"""The one loop that runs a model over examples without training it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fangyan.data.batching import bucket_by_length
from fangyan.data.example import Example
from fangyan.data.packing import collate
from fangyan.data.token_store import TokenStore
from fangyan.data.tokenization import TokenizedSequence, Tokenizer
from fangyan.device import device
from fangyan.models.packed import PackedModel
from fangyan.progress import track
from fangyan.tasks.report import Report
from fangyan.tasks.task import Metrics, Task

# Sub-words in a batch of evaluation.
BATCH_TOKENS = 4096

Forward = Callable[[Callable[[PackedModel], list[Any]]], list[Any]]


def evaluate(
    task: Task,
    model: PackedModel,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int,
    forward: Forward | None = None,
    cache: Path | None = None,
    on_report: Callable[[Report], None] | None = None,
    on_outputs: Callable[[list[Any]], None] | None = None,
) -> Metrics:
    """Return the task's metrics of a model on examples.

    See :func:`run_batches` for ``forward``, :meth:`Task.tokenize_all` for ``cache``. ``on_report`` is called
    with the scores of each class, where the task has classes, and ``on_outputs`` with all outputs.
    """
    sequences = task.tokenize_all(examples, tokenizer, max_length, cache, scored=True)
    outputs = run_batches(task, model, sequences, tokenizer.pad_id, forward)
    if on_outputs is not None:
        on_outputs(outputs)
    report = None if on_report is None else task.report(examples, outputs)
    if on_report is not None and report is not None:
        on_report(report)
    return task.metrics(examples, outputs)


@torch.no_grad()
def run_batches(
    task: Task,
    model: PackedModel,
    sequences: Sequence[TokenizedSequence],
    pad_id: int,
    forward: Forward | None = None,
) -> list[Any]:
    """Return the task's outputs of all sequences, in an order that may be any.

    With several ranks each must call it with the same sequences; each runs some of the batches, and every
    rank returns all outputs.

    Args:
        task: whose outputs.
        model: on this rank's device, in evaluation mode.
        sequences: what to run.
        pad_id: of the tokenizer.
        forward: the DeepSpeed engine around the model; by default the model itself, on this process alone.
    """
    rank, ranks = (0, 1) if forward is None else (dist.get_rank(), dist.get_world_size())
    run: Forward = model if forward is None else forward
    if isinstance(sequences, TokenStore):
        lengths = sequences.lengths
    else:
        lengths = np.array([len(sequence.input_ids) for sequence in sequences], dtype=np.int64)
    batches = bucket_by_length(lengths, BATCH_TOKENS)
    outputs: list[Any] = []
    # Under ZeRO-3 a forward gathers weights from every rank: all make the same number of them.
    for first in track(range(0, len(batches), ranks), "evaluating"):
        members = batches[first + rank] if first + rank < len(batches) else []
        batch = collate([sequences[i] for i in members], pad_id, model.row_width).to(device())
        outputs += run(lambda packed, batch=batch: task.outputs(packed, batch))  # type: ignore[misc]
    if ranks == 1:
        return outputs
    gathered: list[list[Any]] = [[] for _ in range(ranks)]
    dist.all_gather_object(gathered, outputs)
    return [output for part in gathered for output in part]
