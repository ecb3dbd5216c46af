"""Weights are pulled back to where they were: as a proximal step, and never those of a new head."""

from types import SimpleNamespace

import pytest
import torch
from fangyan.objectives.anchor import Anchor, hold
from fangyan.objectives.gradients import catching_gradients
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

STRENGTHS = st.floats(1e-6, 1e6)


@given(STRENGTHS, st.integers(1, 300), st.booleans())
def test_pull_is_the_minimum_of_penalty_and_distance(strength, size, is_weighted):
    """Of s f / 2 (w - w_0)^2 + 1 / 2 (w - v)^2, whose gradient is then zero, in float64."""
    generator = torch.Generator().manual_seed(size)
    start = torch.randn(size, generator=generator, dtype=torch.float64)
    before = torch.randn(size, generator=generator, dtype=torch.float64)
    importance = torch.rand(size, generator=generator).to(torch.bfloat16) if is_weighted else None
    weights = before.clone()
    Anchor(start, importance).pull(weights, strength)
    factor = strength if importance is None else strength * importance.double()
    gradient = factor * (weights - start) + (weights - before)
    assert (gradient.abs() <= 1e-12 * (1 + factor) * (1 + before.abs() + start.abs())).all()
    assert ((weights - start).abs() <= (before - start).abs() + 1e-12).all()


def test_pull_in_pieces_is_the_same(monkeypatch):
    start, before, importance = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    whole, pieces = before.clone(), before.clone().view(10, 100)
    Anchor(start, importance.abs()).pull(whole, 3.0)
    monkeypatch.setattr("fangyan.objectives.anchor._PIECE", 7)
    Anchor(start.view(10, 100), importance.abs().view(10, 100)).pull(pieces, 3.0)
    assert torch.equal(pieces.flatten(), whole)


@pytest.fixture
def engine():
    """What DeepSpeed's engine has at stage 0: an optimizer with groups of its own."""
    old, new = nn.Linear(4, 3), nn.Linear(3, 2)
    groups = [
        {"params": [*old.parameters()], "name": "decay", "is_new": False},
        {"params": [*new.parameters()], "name": "decay", "is_new": True},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    model = nn.Sequential(old, new)
    return SimpleNamespace(optimizer=SimpleNamespace(), model=model, inner=optimizer)


def step(engine, times):
    for _ in range(times):
        engine.inner.zero_grad()
        engine.model(torch.ones(1, 4)).sum().backward()
        engine.inner.step()


def test_hold_leaves_a_new_head_free(engine):
    start = [parameter.detach().clone() for parameter in engine.model.parameters()]
    hold(engine, engine.inner, 1e9)
    step(engine, 20)
    moved = [(new - old).abs().max() for new, old in zip(engine.model.parameters(), start, strict=True)]
    # Each step is taken back before the next: the last one is left.
    last = [0.1 * parameter.grad.abs().max() for parameter in engine.model.parameters()]
    assert all(moved[i] <= 1.001 * last[i] for i in (0, 1))
    assert all(moved[i] > 5 * last[i] for i in (2, 3))


def test_hold_follows_the_learning_rate(engine):
    """Weights that are not learned at all are not pulled either."""
    hold(engine, engine.inner, 10.0)
    with torch.no_grad():
        engine.model[0].weight.add_(1.0)
    moved = engine.model[0].weight.detach().clone()
    engine.inner.param_groups[0]["lr"] = 0.0
    step(engine, 1)
    assert torch.equal(engine.model[0].weight, moved)


def test_catching_gradients_changes_nothing(engine):
    """See test_runs for DeepSpeed's own, at every stage."""
    inner = engine.inner
    full = SimpleNamespace(
        optimizer=inner,
        lr_scheduler="kept",
        _config=SimpleNamespace(gradient_clipping=1.0),
        **dict.fromkeys(("global_steps", "global_samples", "micro_steps", "skipped_steps"), 3),
    )
    before = [parameter.detach().clone() for parameter in engine.model.parameters()]
    caught = {}
    with catching_gradients(
        full, inner, lambda vector, gradient: caught.update({id(vector): gradient.clone()})
    ):
        assert full.lr_scheduler is None
        assert full._config.gradient_clipping == 0.0
        full.global_steps += 1
        step(engine, 1)
    assert (full.lr_scheduler, full._config.gradient_clipping, full.global_steps) == ("kept", 1.0, 3)
    assert all(torch.equal(caught[id(p)], p.grad) for p in engine.model.parameters())
    assert all(torch.equal(p, old) for p, old in zip(engine.model.parameters(), before, strict=True))
    assert not inner.state
    step(engine, 1)
    assert not torch.equal(next(engine.model.parameters()), before[0])
