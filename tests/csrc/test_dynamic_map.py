"""The constants of csrc/dynamic_map.h are those that its script fits, and every code's boundary is right.

tests/kernels/optim8bit encodes the floats on both sides of every boundary with the kernel itself.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
HEADER = (CSRC / "dynamic_map.h").read_text(encoding="utf-8")


def _load_script():
    spec = importlib.util.spec_from_file_location("fit_dynamic_map", CSRC / "tools" / "fit_dynamic_map.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fit = _load_script()
SIGNS = pytest.mark.parametrize("with_sign", [True, False], ids=["signed", "unsigned"])


def constant(name):
    return float(re.search(rf"\b{name} = ([-+.\de]+)f?[,;]", HEADER)[1])


def selector(with_sign):
    name = "kSignedSelector" if with_sign else "kUnsignedSelector"
    number = r"([-.\de]+)f?"
    pattern = rf"{name}\{{\.prescale = {number}, \.scale = {number}, \.shift = kRounding - (\d+)\}}"
    prescale, scale, shift = re.search(pattern, HEADER).groups()
    return float(prescale), float(scale), -int(shift)


@SIGNS
def test_fit_selector_matches_header(with_sign):
    found = fit.fit_selector(with_sign)
    assert (found.prescale, found.scale, found.shift) == selector(with_sign)
    assert found.margin >= 0.001


@SIGNS
def test_wrong_boundaries_of_header_constants(with_sign):
    assert len(fit.codes(with_sign)) == (129 if with_sign else 256)
    assert fit.wrong_boundaries(with_sign) == []
    assert fit.largest_position_error(with_sign) < constant("kPositionError")


def test_wrong_boundaries_other_join(monkeypatch):
    monkeypatch.setattr(fit, "JOIN", fit.Fraction(1, 4))
    assert {2, 4, 8, 16, 32, 64} <= set(fit.wrong_boundaries(True))


def test_chosen_constants_match_header():
    chosen = {"kJoin": fit.JOIN, "kJoinSlope": fit.JOIN_SLOPE, "kPositionError": fit.POSITION_ERROR}
    chosen |= {"kSmallest": fit.SMALLEST, "kNonzero": fit.NONZERO, "kSegments": fit.SEGMENTS}
    for name, value in chosen.items():
        assert constant(name) == float(value), name
