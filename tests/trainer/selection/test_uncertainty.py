"""How unsure a model is, against SciPy and by hand."""

import numpy as np
import pytest
from fangyan.selection.uncertainty import UNCERTAINTIES, entropy, margin, uncertainty
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 9))
def test_entropy_is_scipys(seed, units, classes):
    logits = np.random.default_rng(seed).normal(0.0, 4.0, (units, classes))
    logs = (logits - np.logaddexp.reduce(logits, 1, keepdims=True)).astype(np.float32)
    np.testing.assert_allclose(entropy(logs), stats.entropy(np.exp(logs.astype(float)), axis=1), atol=1e-5)
    for kind, measure in UNCERTAINTIES.items():
        assert uncertainty(logs, kind) == pytest.approx(measure(logs).mean())


def test_each_measure_by_hand():
    logs = np.log(np.array([[0.5, 0.3, 0.2], [1.0, 1e-30, 1e-30]], dtype=np.float32))
    assert uncertainty(logs, "margin") == pytest.approx((0.8 + 0.0) / 2)
    assert uncertainty(logs, "least_confidence") == pytest.approx(np.log(2) / 2)
    assert uncertainty(logs, "entropy") == pytest.approx(stats.entropy([0.5, 0.3, 0.2]) / 2)


def test_certainty_and_no_units_are_no_doubt():
    with np.errstate(divide="ignore"):
        sure = np.log(np.array([[1.0, 0.0]], dtype=np.float32))
    for kind in UNCERTAINTIES:
        assert uncertainty(sure, kind) == 0.0
        assert uncertainty(np.empty((0, 3), dtype=np.float32), kind) == 0.0
    assert margin(np.zeros((2, 1), dtype=np.float32)).tolist() == [0.0, 0.0]
