"""Gradients against autograd, k-centre against its definition."""

import numpy as np
import torch
from fangyan.selection.diversity import (
    GRADIENT_SIZE,
    GradientEmbeddings,
    k_centre,
    kmeans_seeds,
    mean_hidden,
)
from fangyan.tasks.predictor import Scored
from hypothesis import given, settings
from hypothesis import strategies as st


def scored(units, classes, hidden_size, seed=0):
    """What a head at random weights makes of random states, and the head's weight and those states."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, hidden_size, generator=draw, requires_grad=True)
    hidden = torch.randn(units, hidden_size, generator=draw)
    logs = (hidden @ weight.T).log_softmax(1)
    return Scored(logs.detach().numpy(), logs.argmax(1).numpy(), hidden.numpy()), logs, weight


def test_embedding_is_the_gradient_of_the_loss_of_what_is_predicted():
    found, logs, weight = scored(units=5, classes=3, hidden_size=8)
    torch.nn.functional.nll_loss(logs, logs.argmax(1)).backward()
    embedding = GradientEmbeddings(seed=0)(found)
    torch.testing.assert_close(torch.from_numpy(embedding).view(3, 8), weight.grad)


def test_projected_gradients_keep_distances_on_average():
    found = [scored(4, 60, 300, seed)[0] for seed in range(12)]
    exact = []
    for each in found:
        residual = np.exp(each.log_probabilities_UC)
        residual[np.arange(4), residual.argmax(1)] -= 1.0
        exact.append((residual.T @ each.hidden_UH / 4).ravel())
    embed = GradientEmbeddings(seed=0)
    kept = [embed(each) for each in found]
    assert {row.shape for row in kept} == {(GRADIENT_SIZE,)}
    pairs = [(i, j) for i in range(12) for j in range(i)]
    ratios = [np.linalg.norm(kept[i] - kept[j]) / np.linalg.norm(exact[i] - exact[j]) for i, j in pairs]
    assert 0.95 < np.mean(ratios) < 1.05
    assert max(np.abs(np.array(ratios) - 1.0)) < 0.35
    again = GradientEmbeddings(seed=0)(found[0])
    np.testing.assert_array_equal(again, kept[0])


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 4))
def test_k_centre_takes_the_farthest_each_time(seed, count, centres):
    draw = np.random.default_rng(seed)
    points = draw.normal(size=(count, 3)).astype(np.float32)
    known = draw.normal(size=(centres, 3)).astype(np.float32) if centres else None
    number = int(draw.integers(1, count + 1))
    chosen = k_centre(points, number, known)
    assert len(set(chosen)) == number
    before = [] if known is None else list(known)
    for i in chosen:
        if before:
            distances = [min(np.linalg.norm(point - other) for other in before) for point in points]
            assert distances[i] > max(distances) - 1e-3
        else:
            assert i == 0
        before.append(points[i])


def test_seeds_are_apart_and_no_point_is_drawn_twice():
    points = np.repeat(np.eye(3, 4, dtype=np.float32) * 100, 50, axis=0)
    for seed in range(5):
        drawn = kmeans_seeds(points, 3, seed)
        assert sorted(i // 50 for i in drawn) == [0, 1, 2]
        assert drawn == kmeans_seeds(points, 3, seed)
    assert len(kmeans_seeds(points, 10, 0)) == len(set(kmeans_seeds(points, 10, 0)))


def test_mean_hidden_is_of_units():
    found, _, _ = scored(3, 2, 4)
    np.testing.assert_allclose(mean_hidden(found), found.hidden_UH.mean(0))
