"""What a tag set marks: words, entities, or nothing but its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Scheme = Literal["segmentation", "iob2", "plain"]


def infer_scheme(tags: Sequence[str]) -> Scheme:
    """Return ``segmentation`` if all tags begin with B- or I-, ``iob2`` if all but ``O`` do, or ``plain``."""
    rest = [tag for tag in tags if tag[:2] not in ("B-", "I-")]
    if not rest:
        return "segmentation"
    return "iob2" if rest == ["O"] else "plain"
