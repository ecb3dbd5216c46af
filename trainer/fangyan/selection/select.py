"""Select the sentences that are most worth labelling for a trained model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fangyan.config import short
from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.inference.load import load
from fangyan.selection.diversity import GradientEmbeddings, k_centre, kmeans_seeds, mean_hidden
from fangyan.selection.pool import NOTHING, Labelled, fresh, labelled_examples, unlabelled
from fangyan.selection.strategies import STRATEGIES, Strategy, Uncertainty
from fangyan.selection.uncertainty import uncertainty
from fangyan.suggestions import did_you_mean
from fangyan.tasks.predictor import Predictor, Scored

DEFAULT_STRATEGY: Strategy = "badge"

# Examples whose gradients or hidden states are compared: of more, those with the highest entropy.
MOST_CANDIDATES = 20_000
# Training examples that k_centre keeps away from.
_MOST_CENTRES = 10_000


def select(
    run: str | Path,
    examples: Sequence[Example],
    number: int,
    strategy: Strategy = DEFAULT_STRATEGY,
    seed: int = 0,
    source: str | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> list[int]:
    """Return which examples are most worth labelling for the model of a run, by their indices.

    What the run's data has, in any split, is left out, and of examples that are there several times the first
    stands for all. All examples are scored, a few at a time.

    Args:
        run: a run folder, or an exported model.
        examples: to choose among, with ``tokens`` or ``text``; their labels are not read.
        number: how many to select; there may be fewer.
        strategy: ``entropy``, ``margin`` or ``least_confidence`` take those that the model is least sure of
            (:mod:`fangyan.selection.uncertainty`); ``badge`` and ``k_centre`` those that also differ
            (:mod:`fangyan.selection.diversity`), among :data:`MOST_CANDIDATES`; ``random`` any.
        seed: of ``random``, ``badge``, and the projections in it; the same seed selects the same.
        source: name of the data set that they are of, where the model has learned to be told.
        say: called with a message where the run's data cannot be left out.

    Returns:
        Indices, the first selected first.

    Raises:
        UserError: if there is no such run or strategy, or the model gives no unit one class of several.
    """
    predictor = load(run, source)
    return choose(predictor, examples, number, strategy, seed, labelled_examples(Path(run), say))


def choose(
    predictor: Predictor,
    examples: Sequence[Example],
    number: int,
    strategy: Strategy | str,
    seed: int,
    labelled: Labelled = NOTHING,
) -> list[int]:
    """Select for a model that is loaded; see :func:`select`.

    Args:
        predictor: the model.
        examples: to choose among.
        number: how many.
        strategy: one of :data:`STRATEGIES`.
        seed: of what is drawn.
        labelled: what to leave out.
    """
    if strategy not in STRATEGIES:
        hint = did_you_mean(strategy, STRATEGIES)
        raise UserError(f"strategy: found {short(strategy)}, expected one of {', '.join(STRATEGIES)}{hint}")
    if number < 1:
        raise UserError(f"number: {number}, expected at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: {seed}, expected 0 to {2**32 - 1}")
    next(iter(predictor.score([])), None)  # refuses a model that has no classes to be unsure of
    indices = fresh(examples, chain(*labelled))
    if not len(indices):
        return []
    if strategy == "random":
        chosen = np.random.default_rng(seed).permutation(indices)
    elif strategy == "badge" or strategy == "k_centre":  # as mypy understands it
        candidates = max(MOST_CANDIDATES, 2 * number)
        if len(indices) > candidates:
            indices = _most_uncertain(predictor, examples, indices, "entropy")[:candidates]
        number = min(number, len(indices))
        if strategy == "badge":
            chosen = indices[_badge(predictor, examples, indices, number, seed)]
        else:
            chosen = indices[_k_centre(predictor, examples, indices, number, seed, labelled.train)]
    else:
        chosen = _most_uncertain(predictor, examples, indices, strategy)
    return [int(i) for i in chosen[:number]]


def _most_uncertain(
    predictor: Predictor, examples: Sequence[Example], indices: NDArray[np.int64], kind: Uncertainty
) -> NDArray[np.int64]:
    """Return indices by how unsure the model is of their examples, the least sure first."""
    scored = predictor.score(unlabelled(examples[i]) for i in indices.tolist())
    scores = np.fromiter((uncertainty(each.log_probabilities_UC, kind) for each in scored), np.float32)
    ordered: NDArray[np.int64] = indices[np.argsort(-scores, kind="stable")]
    return ordered


def _embeddings(
    predictor: Predictor,
    examples: Sequence[Example],
    indices: NDArray[np.int64],
    embed: Callable[[Scored], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Return a vector for each of some examples, of which there is one at least: (N, D)."""
    scored = predictor.score((unlabelled(examples[i]) for i in indices.tolist()), hidden=True)
    first = embed(next(scored))
    rows_ND = np.empty((len(indices), len(first)), dtype=np.float32)
    for i, row_D in enumerate(chain([first], map(embed, scored))):
        rows_ND[i] = row_D
    return rows_ND


def _badge(
    predictor: Predictor, examples: Sequence[Example], indices: NDArray[np.int64], number: int, seed: int
) -> list[int]:
    """Return which of the candidates BADGE draws."""
    points_ND = _embeddings(predictor, examples, indices, GradientEmbeddings(seed))
    drawn = kmeans_seeds(points_ND, number, seed)
    # Where fewer differ, the longest gradients of the others follow: those of which the model is least sure.
    others = np.argsort(-np.square(points_ND).sum(1), kind="stable").tolist()
    return list(dict.fromkeys([*drawn, *others]))[:number]


def _k_centre(
    predictor: Predictor,
    examples: Sequence[Example],
    indices: NDArray[np.int64],
    number: int,
    seed: int,
    train: Sequence[Example],
) -> list[int]:
    """Return which of the candidates lie farthest from each other and from the training data."""
    known = np.random.default_rng(seed).permutation(len(train))[:_MOST_CENTRES]
    centres_MD = _embeddings(predictor, train, np.sort(known), mean_hidden) if len(known) else None
    points_ND = _embeddings(predictor, examples, indices, mean_hidden)
    return k_centre(points_ND, number, centres_MD)
