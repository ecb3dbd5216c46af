"""What a user may have meant by a name that there is not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

# How alike two names are, from 0 to 1; characters and names that are compared.
_ALIKE = 0.6
_LONGEST, _MOST = 200, 10_000


def did_you_mean(found: str, known: Iterable[str], before: str = "") -> str:
    """Return the end of a sentence that names what is nearest to a name; "" where nothing is near.

    Args:
        found: the name.
        known: that there are.
        before: what stands before these in the sentence, such as ``train.`` before a field.
    """
    names = {name.lower(): name for name in islice(known, _MOST)}
    near = get_close_matches(found.lower()[:_LONGEST], names, 1, _ALIKE)
    return f"; did you mean {before}{names[near[0]]}?" if near and names[near[0]] != found else ""


def file_like(path: str | Path) -> str:
    """Return :func:`did_you_mean` of a file or folder that does not exist, by what is in its folder."""
    path = Path(path)
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:  # its folder does not exist either
        return ""
    before = "" if path.parent == Path() else f"{path.parent}/"
    return did_you_mean(path.name, (name for name in names if not name.startswith(".")), before)


def run_like(run: Path) -> str:
    """Return :func:`did_you_mean` of a run folder that does not exist, which may be one in ``runs``."""
    usual = Path("runs", run)
    return f"; did you mean {usual}?" if usual.is_dir() else file_like(run) or file_like(usual)
