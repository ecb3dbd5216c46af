"""Examples that differ: in the gradients that they would have (BADGE), or in hidden states (k-centre)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fangyan.tasks.predictor import Scored

# Numbers that stand for one example's gradient: 160 MB for 20,000 of them.
GRADIENT_SIZE = 2048
# Classes at most that a gradient keeps apart.
_CLASSES = 32


class GradientEmbeddings:
    """The gradient of the head's weight where the model's own prediction is the label (BADGE).

    Ash et al. 2020, arXiv 1906.03671, equation 1: the outer product of the probabilities, less 1 for the
    predicted class, and of what the head reads. It is long where the model is unsure. A sentence has the mean
    of its tokens. Of many classes or large hidden states both factors are projected at random first, which
    keeps distances on average (Johnson & Lindenstrauss 1984).

    Args:
        seed: of the projections.
    """

    def __init__(self, seed: int):
        self._seed = seed
        # Of classes and of hidden states, (C, K) and (H, L); None keeps all.
        self._projections: tuple[NDArray[np.float32] | None, NDArray[np.float32] | None] | None = None

    def _project(
        self, residual_UC: NDArray[np.float32], hidden_UH: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return both factors of the outer products, with columns that have room in a gradient."""
        if self._projections is None:
            classes, hidden_size = residual_UC.shape[1], hidden_UH.shape[1]
            draw = np.random.default_rng([self._seed, classes, hidden_size])
            kept = min(classes, _CLASSES)
            self._projections = (
                _projection(draw, classes, kept),
                _projection(draw, hidden_size, min(hidden_size, GRADIENT_SIZE // kept)),
            )
        classes_CK, hidden_HL = self._projections
        return (
            residual_UC if classes_CK is None else residual_UC @ classes_CK,
            hidden_UH if hidden_HL is None else hidden_UH @ hidden_HL,
        )

    def __call__(self, scored: Scored) -> NDArray[np.float32]:
        """Return the embedding of an example, (D,), D being :data:`GRADIENT_SIZE` at most."""
        residual_UC: NDArray[np.float32] = np.exp(scored.log_probabilities_UC)
        predicted_U = residual_UC.argmax(1)
        residual_UC[np.arange(len(residual_UC)), predicted_U] -= 1.0
        assert scored.hidden_UH is not None
        residual_UK, hidden_UL = self._project(residual_UC, scored.hidden_UH)
        summed_KL: NDArray[np.float32] = residual_UK.T @ hidden_UL
        return summed_KL.ravel() / np.float32(max(len(hidden_UL), 1))


def _projection(draw: np.random.Generator, size: int, kept: int) -> NDArray[np.float32] | None:
    """Return a random projection that keeps squared lengths on average, (size, kept), or None to keep all."""
    if kept == size:
        return None
    drawn: NDArray[np.float32] = draw.standard_normal((size, kept), dtype=np.float32)
    return drawn / np.float32(np.sqrt(kept))


def mean_hidden(scored: Scored) -> NDArray[np.float32]:
    """Return the mean of what the head reads of an example's units, (H,)."""
    assert scored.hidden_UH is not None
    mean: NDArray[np.float32] = scored.hidden_UH.mean(0)
    return mean


def kmeans_seeds(points_ND: NDArray[np.float32], number: int, seed: int) -> list[int]:
    """Return points as k-means++ draws them: each by its squared distance to those before.

    Points that are the same as one before are left out, so that there may be fewer.

    Args:
        points_ND: (N, D).
        number: of them to draw, N at most.
        seed: of the draw.
    """
    from sklearn.cluster import kmeans_plusplus

    # One trial for each: with more, the best of several is taken, which is less diverse than BADGE's.
    _, drawn = kmeans_plusplus(points_ND, number, random_state=seed, n_local_trials=1)
    return list(dict.fromkeys(drawn.tolist()))


def k_centre(
    points_ND: NDArray[np.float32], number: int, centres_MD: NDArray[np.float32] | None = None
) -> list[int]:
    """Return points, each the farthest from all before it and from given centres.

    Sener & Savarese 2018, arXiv 1708.00489, algorithm 1.

    Args:
        points_ND: (N, D), of which the first is the first centre where none is given.
        number: of them to choose, N at most.
        centres_MD: of what is labelled, (M, D).
    """
    distances_N = np.full(len(points_ND), np.inf, dtype=np.float32)
    norms_N = np.square(points_ND).sum(1)

    def approach(centre_D: NDArray[np.float32]) -> None:
        squares_N = norms_N - 2.0 * (points_ND @ centre_D) + np.square(centre_D).sum()
        np.minimum(distances_N, squares_N, out=distances_N)

    for centre_D in () if centres_MD is None else centres_MD:
        approach(centre_D)
    chosen: list[int] = []
    for _ in range(number):
        chosen.append(int(distances_N.argmax()))
        approach(points_ND[chosen[-1]])
        distances_N[chosen] = -np.inf
    return chosen
