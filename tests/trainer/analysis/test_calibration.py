"""Temperatures that are known, errors by hand, and probabilities of a calibrated export."""

import json

import fangyan
import numpy as np
import pytest
from fangyan.analysis.calibration import fit_temperature, reliability
from fangyan.data.example import Example
from fangyan.data.tokenization import IGNORE_INDEX
from fangyan.errors import UserError
from fangyan.inference.load import load_exported
from fangyan.inference.temperature import store_temperature
from fangyan.tasks.probabilities import log_softmax, softmax
from probed_runs import BY_NAME, TAGGER, run_folder
from tiny_exports import tagger


def drawn(temperature, count=20_000):
    """Scores whose softmax is that of the right classes, times a temperature."""
    generator = np.random.default_rng(0)
    scores_NC = generator.normal(size=(count, 4)) * 2.0
    gold_N = (softmax(scores_NC).cumsum(1) > generator.random((count, 1))).argmax(1)
    return (scores_NC * temperature).astype(np.float32), gold_N


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_fit_temperature_finds_the_one_that_was_there(temperature):
    scores_NC, gold_N = drawn(temperature)
    found = fit_temperature(scores_NC, gold_N)
    assert found == pytest.approx(temperature, rel=0.04)
    assert fit_temperature(log_softmax(scores_NC), gold_N) == pytest.approx(found, rel=1e-4)
    # A minimum: others near it are worse.
    best = reliability(scores_NC, gold_N, found)
    for factor in (0.95, 1.05):
        assert reliability(scores_NC, gold_N, found * factor).nll > best.nll
    assert best.ece < 1.0
    if temperature != 1.0:
        assert reliability(scores_NC, gold_N).ece > 5.0


def test_reliability_by_hand():
    """Four predictions: 0.9 right, 0.9 wrong, 0.6 right, and one whose class was not learned."""
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.6, 0.4]])
    found = reliability(np.log(shares), np.array([0, 1, 1, IGNORE_INDEX]))
    assert [each.count for each in found.bins] == [2, 2]
    low, high = found.bins
    assert (low.confidence, low.accuracy) == (pytest.approx(0.6), 0.5)
    assert (high.confidence, high.accuracy) == (pytest.approx(0.9), 0.5)
    assert found.ece == pytest.approx(100 * (2 * 0.1 + 2 * 0.4) / 4)
    assert found.nll == pytest.approx(-np.log([0.9, 0.1, 0.6]).mean())


def test_confidence_on_a_bound_is_in_the_bin_below():
    (found,) = reliability(np.log(np.array([[0.8, 0.2]])), np.array([0])).bins
    assert found.high == pytest.approx(0.8)


def test_fit_temperature_of_nothing():
    with pytest.raises(UserError, match="no label that the model has learned"):
        fit_temperature(np.zeros((2, 3)), np.array([IGNORE_INDEX] * 2))


def at_three(shares):
    """Probabilities as they are at temperature 3."""
    scaled = {label: share ** (1 / 3.0) for label, share in shares.items()}
    return {label: share / sum(scaled.values()) for label, share in scaled.items()}


def test_a_stored_temperature_is_of_probabilities_alone(tmp_path):
    folder = run_folder(TAGGER, tmp_path) / "model"
    example = Example({"tokens": ("w10", "w31", "w42")}, "", "")
    (before,) = fangyan.load(folder).annotate([example], 99)
    assert load_exported(folder).task.temperature == 1.0  # of an export that says nothing
    store_temperature(folder, 3.0)
    assert load_exported(folder).task.temperature == 3.0
    (after,) = fangyan.load(folder).annotate([example], 99)
    assert after.tags == before.tags
    for old, new in zip(before.probabilities, after.probabilities, strict=True):
        assert dict(new) == pytest.approx(at_three(dict(old)), abs=1e-6)
    fangyan.export(folder, tmp_path / "copy")
    fangyan.merge(folder, tmp_path / "merged")
    assert load_exported(tmp_path / "copy").task.temperature == 3.0
    content = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert content["fangyan"]["temperature"] == 3.0


def test_a_stored_temperature_of_texts(tmp_path):
    folder = run_folder(BY_NAME["one class"], tmp_path) / "model"
    (before,) = fangyan.load(folder).predict(["w10 w31"])
    store_temperature(folder, 3.0)
    (after,) = fangyan.load(folder).predict(["w10 w31"])
    assert after.label == before.label
    assert after.probabilities == pytest.approx(at_three(before.probabilities))


@pytest.mark.parametrize("value", [0, -1.0, "2", None, True, float("inf")])
def test_a_damaged_temperature_is_refused(tmp_path, value):
    folder = tagger(tmp_path / "model")
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["fangyan"]["temperature"] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"config.json: fangyan.temperature is .*, expected a whole export"):
        load_exported(folder)
