"""Fits the constants of ``csrc/dynamic_map.h`` and proves their margins; ``csrc/README.md`` derives them.

    python csrc/tools/fit_dynamic_map.py

prints the two segment selectors, the margin of each, and the largest error of a position among the codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import floor

import numpy as np
from numpy.typing import ArrayLike

# The constants of dynamic_map.h that are chosen, not fitted.
SEGMENTS = 8  # seven decades, and one for 1 alone
JOIN, JOIN_SLOPE = Fraction(1, 5), Fraction(5, 4)
POSITION_ERROR = 1e-4
SMALLEST, NONZERO = 2e-7, 1e-14
LAST_SLOPE = 100  # of the last segment's line

ROUNDING = 2.0**-24  # relative error of one float32 operation
# A selector's prescale has the fewest digits, at most four, that come within a hundredth of the best margin.
DIGITS, NEARLY_BEST = 4, 0.99


@dataclass(frozen=True)
class Selector:
    """Finds the segment of x: ``scale * bits(prescale * x) / 2**23 + shift``, rounded to an integer.

    Attributes:
        scale: as dynamic_map.h has it, of the bits themselves, with seven digits.
        shift: an integer, without the float 1.5 * 2^23 that rounds.
        margin: by how many octaves every transition between segments may be moved.
    """

    prescale: float
    scale: float
    shift: int
    margin: float


@dataclass(frozen=True)
class Segment:
    """A line of positions: ``slope * x + shift``, and the steeper line of the join with the decade below."""

    slope: Fraction
    shift: Fraction
    join_shift: Fraction | None  # None: there is no join

    def position(self, x: Fraction) -> Fraction:
        """Return the position of x; its integer part is the code, counted from 0's."""
        plain = self.slope * x + self.shift
        return plain if self.join_shift is None else min(plain, JOIN_SLOPE * plain + self.join_shift)


def codes(with_sign: bool) -> list[Fraction]:
    """Return the exact values of bitsandbytes' dynamic map from 0 on; of the signed map, one sign's."""
    values = [Fraction(0)]
    for decade in range(SEGMENTS - 1):
        number, end = _number(decade, with_sign), _end(decade)
        values += [
            end * (Fraction(1, 10) + Fraction(9, 10) * Fraction(2 * i + 1, 2 * number)) for i in range(number)
        ]
    return [*values, Fraction(1)]


def boundaries(with_sign: bool) -> list[Fraction]:
    """Return the middles between neighbouring codes."""
    values = codes(with_sign)
    return [(low + high) / 2 for low, high in pairwise(values)]


def segments(with_sign: bool) -> list[Segment]:
    """Return the lines of ``DynamicMap::set_encoding``, exactly."""
    middles = boundaries(with_sign)
    lowest = 0 if with_sign else 1  # without a sign, no number gets 0's code
    lines = []
    for decade in range(SEGMENTS):
        number, end, first = _number(decade, with_sign), _end(decade), _first(decade, with_sign)
        slope = number / (Fraction(9, 10) * end)
        shift = first - number * Fraction(1, 9)
        lines.append(Segment(slope, shift, first - JOIN_SLOPE * (first + JOIN)))
    x = middles[lowest]
    lines[0] = Segment(Fraction(lowest + 1, 4) / x, lowest + 1 - Fraction(lowest + 1, 4), None)
    lines[-1] = Segment(Fraction(LAST_SLOPE), len(middles) - LAST_SLOPE * middles[-1], None)
    return lines


def transitions(with_sign: bool) -> list[tuple[Fraction, Fraction]]:
    """Return, for each segment but the last, where it may end and the next begin: both are right there.

    From the last boundary within a decade on, the next decade's line is right as well, down its join; a
    decade's own line is right up to its end. The last segment's line is right from 127 (254) on.
    """
    middles = boundaries(with_sign)
    result = []
    for decade in range(SEGMENTS - 2):
        last = _first(decade + 1, with_sign) - 1  # code of the decade
        result.append((middles[last - 1], _end(decade)))
    result.append((max(middles[-2], middles[-1] - Fraction(1, LAST_SLOPE)), middles[-1]))
    return result


def wrong_boundaries(with_sign: bool) -> list[int]:
    """Return the codes that a segment's position does not reach at their lower boundary, in exact arithmetic.

    Looks at every segment that may be selected at a boundary, and at where it begins. Positions rise with x:
    one that is the code at its lower boundary, and not below it where the segment begins, is right.
    """
    wrong = []
    lines, spans = segments(with_sign), transitions(with_sign)
    for code, x in enumerate(boundaries(with_sign), start=1):
        if code == 1 and not with_sign:  # no number has 0's code
            continue
        selected = _selected(lines, spans, x)
        if not selected or any(line.position(x) != code for line in selected):
            wrong.append(code)
    last = 0
    for decade, (begin, _) in enumerate(spans):
        last += _number(decade, with_sign)
        if floor(lines[decade + 1].position(begin)) != last:
            wrong.append(last)
    return wrong


def _selected(lines: list[Segment], spans: list[tuple[Fraction, Fraction]], x: Fraction) -> list[Segment]:
    """Return the segments that x may be in. Transitions keep a margin: they are not at their bounds."""
    return [
        line
        for i, line in enumerate(lines)
        if (i == 0 or x > spans[i - 1][0]) and (i == SEGMENTS - 1 or x < spans[i][1])
    ]


def largest_position_error(with_sign: bool) -> float:
    """Return a bound on a float32 position's error at any boundary, where alone it matters.

    Eight roundings scale with x: four products (the reciprocal scale, the prescale, theirs, the line's), the
    line's coefficient and three in the map's own floats. NONZERO is added to x. The shift and the sum are
    rounded once each, and once more on a join's line.
    """
    offset = 128.0 if with_sign else 0.0
    worst = 0.0
    lines, spans = segments(with_sign), transitions(with_sign)
    for code, x in enumerate(boundaries(with_sign), start=1):
        for line in _selected(lines, spans, x):
            slope, shift = float(line.slope), float(line.shift) + offset
            moved = slope * float(x) * 8 * ROUNDING + slope * NONZERO
            error = moved + abs(shift) * ROUNDING + (code + offset) * ROUNDING
            if line.join_shift is not None and line.position(x) != line.slope * x + line.shift:
                error = (
                    float(JOIN_SLOPE) * error + (float(abs(line.join_shift)) + offset + 2 * code) * ROUNDING
                )
            worst = max(worst, error)
    return worst


def selector_margin(with_sign: bool, prescale: float, scale: float, shift: int) -> float:
    """Return by how many octaves the transitions stay within their bounds; negative if one is outside.

    Raises:
        ValueError: if SMALLEST is not in the first segment or NONZERO not among the eight below it.
    """
    low, high = _bits_log2(_spans(with_sign) * np.float32(prescale)).T
    found = (_HALVES - shift) / (float(np.float32(scale)) * 2**23)
    for x, first, last in ((SMALLEST, 0, 0), (NONZERO, -SEGMENTS, -1)):
        segment = round(float(_bits_log2(np.float32(x) * np.float32(prescale))) * scale * 2**23 + shift)
        if not first <= segment <= last:
            raise ValueError(f"{x} is in segment {segment}, expected {first} to {last}")
    return float(np.minimum(found - low, high - found).min())


def fit_selector(with_sign: bool) -> Selector:
    """Return the selector with the widest margin among prescales of few digits."""
    numbers = np.arange(10 ** (DIGITS - 1), 10**DIGITS)
    found: list[tuple[float, float, float, int, int]] = []
    for power in (-4, -3, -2):
        prescales = numbers * 10.0**power
        # The transition to the last segment, of 1, lies half a segment below its number.
        below = np.floor(SEGMENTS - 1.5 - _bits_log2(prescales) * np.log10(2.0)).astype(int)
        for shifts in (below, below + 1):
            found += zip(*_best_scales(with_sign, prescales, shifts), prescales, shifts, numbers, strict=True)
    widest = max(margin for margin, *_ in found)
    enough = [candidate for candidate in found if candidate[0] >= NEARLY_BEST * widest]
    _, scale, prescale, shift, _ = min(enough, key=lambda c: (len(str(c[4]).rstrip("0")), -c[0]))
    prescale, scale, shift = round(float(prescale), 4), float(f"{scale:.6e}"), int(shift)
    return Selector(prescale, scale, shift, selector_margin(with_sign, prescale, scale, shift))


def _best_scales(with_sign: bool, prescales: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the widest margin for each prescale and shift, and the scale that has it.

    It solves a linear program of two unknowns, 1 / scale and the margin: it lies where a transition's lower
    bound and another's upper bound are equally far.
    """
    low, high = (_bits_log2(bound * prescales[:, None])[:, None] for bound in _spans(with_sign).T)
    heights = (_HALVES - shifts[:, None])[:, None]
    inverse = (low + high.transpose(0, 2, 1)) / (heights + heights.transpose(0, 2, 1))
    inverse = inverse.reshape(len(prescales), -1, 1)
    margins = np.minimum(inverse * heights - low, high - inverse * heights).min(axis=2)
    scales = 1 / inverse[np.arange(len(prescales)), margins.argmax(axis=1), 0] / 2**23
    return margins.max(axis=1), scales


_HALVES = np.arange(SEGMENTS - 1) + 0.5


@cache
def _spans(with_sign: bool) -> np.ndarray:
    """Return transitions() as float32 (7, 2)."""
    return np.array(transitions(with_sign), np.float64).astype(np.float32)


def _bits_log2(x: ArrayLike) -> np.ndarray:
    """Return the bits of float32 numbers, in octaves."""
    return np.asarray(x, np.float32).view(np.int32) / 2**23


def _number(decade: int, with_sign: bool) -> int:
    """Return how many codes a decade has."""
    return 1 << (decade if with_sign else decade + 1)


def _first(decade: int, with_sign: bool) -> int:
    """Return a decade's first code, counted from 0's."""
    return _number(decade, with_sign) - (0 if with_sign else 1)


def _end(decade: int) -> Fraction:
    return Fraction(10) ** (decade - 6)


def main() -> None:
    """Print the constants of both maps, and their margins."""
    for with_sign, name in ((True, "signed"), (False, "unsigned")):
        found = fit_selector(with_sign)
        print(
            f"{name}: prescale {found.prescale}, scale {found.scale:.6e}, shift {found.shift}; "
            f"margin {found.margin:.5f} octaves; positions within {largest_position_error(with_sign):.2e}; "
            f"wrong boundaries: {wrong_boundaries(with_sign) or 'none'}"
        )


if __name__ == "__main__":
    main()
