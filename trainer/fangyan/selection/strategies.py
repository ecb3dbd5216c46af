"""The names of the ways to select, for those who need no more: the rest imports torch."""

from __future__ import annotations

from typing import Literal, get_args

Uncertainty = Literal["entropy", "margin", "least_confidence"]
Strategy = Uncertainty | Literal["badge", "k_centre", "random"]
STRATEGIES: tuple[Strategy, ...] = (*get_args(Uncertainty), "badge", "k_centre", "random")
