"""What a user may have meant by a name that there is not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

# How alike two names are, from 0 to 1; and the most names that are compared.
_ALIKE = 0.6
_MOST_NAMES = 10_000


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that names what is nearest to a name; "" where nothing is near.

    Args:
        found: the name.
        known: that there are.
    """
    names = {name.lower(): name for name in known}
    near = get_close_matches(found.lower()[:200], list(names)[:_MOST_NAMES], 1, _ALIKE)
    return f"; did you mean {names[near[0]]}?" if near and names[near[0]] != found else ""


def file_like(path: str | Path) -> str:
    """Return :func:`did_you_mean` of a file or folder that does not exist, by what is in its folder."""
    path = Path(path)
    try:
        names = os.listdir(path.parent)
    except OSError:  # of a folder that does not exist either
        return file_like(path.parent) if path.parent.name and not path.parent.exists() else ""
    return did_you_mean(str(path), (str(path.with_name(name)) for name in names if not name.startswith(".")))
