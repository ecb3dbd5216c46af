"""How much each weight matters for some data: the diagonal of the Fisher information.

It is the second moment of the gradient of the log-likelihood of labels that the model draws itself (Kunstner
et al. 2019, arXiv 1905.12558). Those gradients are zero on average, so that the square of a sum of them is,
on average, the sum of their squares: one backward serves a whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fangyan.data.batching import Batches, micro_batches
from fangyan.data.packing import collate
from fangyan.data.tokenization import TokenizedSequence
from fangyan.device import device
from fangyan.errors import UserError
from fangyan.objectives.anchor import held_vectors
from fangyan.objectives.gradients import catching_gradients
from fangyan.objectives.sampling import sample_labels
from fangyan.progress import track

if TYPE_CHECKING:
    from fangyan.objectives.objective import Run

# Batches whose gradients are squared, at least: the mean of so many has a relative error of 1 / sqrt(50).
_BATCHES = 100


def fisher_information(run: Run, sequences: Sequence[TokenizedSequence]) -> list[Tensor]:
    """Return the diagonal of the Fisher information of this rank's part of the weights. Collective.

    Args:
        run: that begins.
        sequences: of the data for which the weights matter.

    Returns:
        For each of :func:`held_vectors` its elements' importance, bfloat16, 1 on average over all ranks.

    Raises:
        UserError: if no gradient is finite, or all are zero.
    """
    lengths = np.array([len(sequence.input_ids) for sequence in sequences], dtype=np.int64)
    seed = run.seed
    drawn = sample_labels(run.engine, run.model, sequences, lengths, run.tokenizer.pad_id, 1, seed)
    # Each label is a drawn one.
    labelled = drawn.mixed(sequences, range(len(sequences)), 1.0, seed, "fisher")
    vectors = held_vectors(run.engine, run.optimizer)
    sums = {id(vector): torch.zeros_like(vector) for vector in vectors}

    def add(vector: Tensor, gradient: Tensor) -> None:
        if id(vector) in sums and gradient.isfinite().all():
            sums[id(vector)].addcmul_(gradient, gradient)

    order = np.random.default_rng(seed).permutation(len(sequences))
    # No larger than a step's, which there is memory for.
    batch_tokens = min(run.batch_tokens, int(lengths.sum()) // _BATCHES)
    run.engine.eval()  # no dropout
    with catching_gradients(run.engine, run.optimizer, add):
        for batch in track(Batches(order, lengths, batch_tokens), "weighing the weights"):
            _backward(run, [labelled[i] for i in batch])
    run.engine.train()
    found = [sums[id(vector)] for vector in vectors]
    mean = _mean(found)
    if not mean > 0.0:
        raise UserError("objective.data: its gradients are zero or not finite, expected data to learn from")
    return [total.div_(mean).to(torch.bfloat16) for total in found]


def _backward(run: Run, sequences: list[TokenizedSequence]) -> None:
    """Run forward and backward of a batch, in the run's micro-batches."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    lengths = [len(sequence.input_ids) for sequence in sequences]
    split = micro_batches(range(len(sequences)), lengths, ranks * run.accumulation)
    for number in range(run.accumulation):
        chosen = [sequences[i] for i in split[rank * run.accumulation + number]]
        batch = collate(chosen, run.tokenizer.pad_id, run.model.row_width).to(device())
        run.backward(run.engine(lambda model, batch=batch: model.loss(batch)))
        run.engine.step()


def _mean(vectors: list[Tensor]) -> float:
    """Return the mean of the elements of all ranks' vectors. Collective."""
    total = torch.tensor([float(sum(v.double().sum() for v in vectors)), sum(v.numel() for v in vectors)])
    total = total.double().to(device())
    dist.all_reduce(total)
    return float(total[0] / total[1])
