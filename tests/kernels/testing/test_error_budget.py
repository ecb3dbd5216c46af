"""The error budget itself: what passes it, and what does not."""

import pytest
import torch
from fangyan_kernels.testing.error_budget import assert_within_error_budget, error_budget, max_error

EXACT = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
PLAIN = (EXACT + 1e-3).float()


def test_error_budget_is_twice_plains_error_and_a_rounding_step():
    eps = torch.finfo(torch.bfloat16).eps
    assert error_budget(PLAIN, EXACT, torch.bfloat16) == pytest.approx(2e-3 + 2.0 * eps, rel=1e-4)
    assert error_budget(PLAIN, EXACT, torch.bfloat16, 5.0) == pytest.approx(2e-3 + 5.0 * eps, rel=1e-4)
    assert error_budget(PLAIN[:0], EXACT[:0], torch.float32) == 0.0


@pytest.mark.parametrize("error", [2.1e-3, float("nan"), float("inf")])
def test_assert_within_error_budget_of_a_larger_error(error):
    assert_within_error_budget((EXACT + 1.9e-3).float(), PLAIN, EXACT, "loss")
    with pytest.raises(AssertionError, match="loss is off by .*, expected 0.002"):
        assert_within_error_budget((EXACT + error).float(), PLAIN, EXACT, "loss")


def test_assert_within_error_budget_where_plain_is_not_finite():
    """A budget that is NaN allows nothing."""
    with pytest.raises(AssertionError, match="expected nan"):
        assert_within_error_budget(EXACT.float(), PLAIN * float("nan"), EXACT, "loss")


def test_assert_within_error_budget_of_another_shape():
    with pytest.raises(AssertionError, match=r"loss has shape \(1,\), expected \(3,\)"):
        assert_within_error_budget(PLAIN[:1], PLAIN, EXACT, "loss")


def test_max_error_of_empty_tensors():
    assert max_error(PLAIN[:0], EXACT[:0]) == 0.0
