"""Intervals and p of differences, against a plain loop, known answers, and what is drawn."""

import numpy as np
import pytest
from fangyan.analysis.bootstrap import LEAST, Units, intervals, paired
from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.tasks.resampling import Counts, ratio


def shares(right_E):
    """The share of texts that are right, in percent."""
    rows = np.column_stack([right_E, np.ones(len(right_E))]).astype(float)
    return Counts(rows, lambda sums: {"accuracy": 100.0 * ratio(sums[:, 0], sums[:, 1])})


def examples_of(groups):
    return [Example({"text": "x"}, f"f:{i}", str(group)) for i, group in enumerate(groups)]


def test_units_are_groups_where_there_are_enough():
    assert Units.of(examples_of(range(50))).kind == "examples"  # each a group of its own
    many = Units.of(examples_of([i // 3 for i in range(90)]))
    assert (many.kind, len(many)) == ("groups", 30)
    few = Units.of(examples_of([i // 30 for i in range(90)]))
    assert (few.kind, len(few)) == ("examples", 90)
    assert "3 groups are too few" in few.sentence
    forced = Units.of(examples_of([i // 6 for i in range(90)]), "groups")
    assert (forced.kind, len(forced)) == ("groups", 15)
    assert "fewer than 20 may be too narrow" in forced.sentence
    with pytest.raises(UserError, match="--by groups: the data has 3 groups, expected 10 or more"):
        Units.of(examples_of([i // 30 for i in range(90)]), "groups")


def test_draws_keep_groups_whole():
    units = Units.of(examples_of([i // 3 for i in range(90)]))
    (weights_RE,) = units.draws(40, seed=0)
    assert weights_RE.shape == (40, 90)
    assert (weights_RE.reshape(40, 30, 3) == weights_RE[:, ::3, None]).all()
    assert (weights_RE[:, ::3].sum(1) == 30).all()
    part = units.subset(np.array([0, 1, 5, 88]))
    assert (part.kind, part.unit_E.tolist(), len(part)) == ("groups", [0, 0, 1, 2], 3)


def test_interval_of_a_share():
    """By the normal approximation: 60% of 400, its standard error 2.45."""
    right_E = np.arange(400) < 240
    units = Units.of(examples_of(range(400)))
    low, high = intervals(shares(right_E), units, 4000)["accuracy"]
    assert low == pytest.approx(60 - 1.96 * 2.449, abs=0.5)
    assert high == pytest.approx(60 + 1.96 * 2.449, abs=0.5)
    assert intervals(shares(right_E[:5]), Units.of(examples_of(range(5)))) == {}


def test_groups_that_are_right_or_wrong_as_a_whole_have_wider_intervals():
    right_E = np.repeat(np.arange(40) < 24, 10)
    groups = examples_of(np.repeat(np.arange(40), 10))
    wide, narrow = (
        intervals(shares(right_E), Units.of(groups, by))["accuracy"] for by in ("groups", "examples")
    )
    assert wide[1] - wide[0] > 2.5 * (narrow[1] - narrow[0])


def test_paired_against_a_plain_loop():
    generator = np.random.default_rng(3)
    left_E, right_E = generator.random(60) < 0.6, generator.random(60) < 0.7
    units = Units.of(examples_of(range(60)))
    found = paired(shares(left_E), shares(right_E), units, 500, seed=5)["accuracy"]
    differences = []
    for (weights_E,) in (row[None] for row in np.concatenate(list(units.draws(500, 5)))):
        places = np.repeat(np.arange(60), weights_E.astype(int))
        differences.append(100 * right_E[places].mean() - 100 * left_E[places].mean())
    observed = 100 * right_E.mean() - 100 * left_E.mean()
    assert found.difference == pytest.approx(observed)
    assert found.interval == pytest.approx(np.percentile(differences, [2.5, 97.5]))
    extreme = sum(abs(value - observed) >= abs(observed) - 1e-9 for value in differences)
    assert found.p == (1 + extreme) / 501


def test_paired_of_one_model_and_itself():
    right_E = np.random.default_rng(0).random(50) < 0.5
    found = paired(shares(right_E), shares(right_E), Units.of(examples_of(range(50))))["accuracy"]
    assert (found.difference, tuple(found.interval), found.p) == (0.0, (0.0, 0.0), 1.0)


def test_p_is_uniform_where_there_is_no_difference():
    """Of 200 pairs of models that are equally good, about 1 in 20 differs by p < 0.05."""
    units = Units.of(examples_of(range(200)))
    found = []
    for seed in range(200):
        sides = np.random.default_rng(seed).random((2, 200)) < 0.7
        found.append(paired(shares(sides[0]), shares(sides[1]), units, 200, seed)["accuracy"].p)
    assert 2 <= sum(p < 0.05 for p in found) <= 22
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)


def test_paired_of_few_examples_has_no_interval():
    right_E = np.ones(LEAST - 1)
    found = paired(shares(right_E), shares(right_E * 0), Units.of(examples_of(range(LEAST - 1))))["accuracy"]
    assert (found.difference, found.interval, found.p) == (-100.0, None, None)
    assert (found.bounds, found.probability) == ("–", "–")


def test_a_p_that_rounds_to_nothing_is_not_shown_as_nothing():
    right_E = np.ones(60)
    found = paired(shares(right_E), shares(right_E * 0), Units.of(examples_of(range(60))), 2000)["accuracy"]
    assert (found.p, found.probability) == (1 / 2001, "<0.001")


def test_a_metric_that_is_not_finite():
    endless = Counts(np.ones((20, 1)), lambda sums: {"perplexity": np.full(len(sums), np.inf)})
    with pytest.raises(UserError, match="perplexity is not finite"):
        paired(endless, endless, Units.of(examples_of(range(20))))
