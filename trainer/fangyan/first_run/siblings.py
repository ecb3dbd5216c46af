"""Files beside one to train on: ``xx-ud-train.conllu`` comes with ``xx-ud-dev.conllu``."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from fangyan.errors import UserError
from fangyan.first_run.guess import Guess, data_of

_TRAIN = re.compile(r"(?<![a-z])(train(?:ing)?)(?![a-z])", re.IGNORECASE)
_NAMES = {
    "dev": ("dev", "valid", "validation", "val", "development", "testa"),
    "test": ("test", "testb", "eval", "testing"),
}
# Examples that have to be readable.
_READ = 100


def siblings(path: Path, guess: Guess) -> dict[str, Path]:
    """Return the files of dev and test beside one to train on, which are read as it is.

    Args:
        path: of the file to train on.
        guess: what it is.
    """
    found: dict[str, Path] = {}
    for split, names in _NAMES.items():
        for name in names:
            other = path.with_name(_TRAIN.sub(name, path.name))
            if other != path and other.is_file() and _is_alike(other, guess):
                found[split] = other
                break
    return found


def name_of(path: Path) -> str:
    """Return a name for a run on a file: what it is called, without train."""
    stem = path.name.partition(".")[0]
    plain = re.sub(r"[^\w.-]+", "-", _TRAIN.sub("", stem)).strip("-._")
    folder = re.sub(r"[^\w.-]+", "-", path.absolute().parent.name).strip("-._")
    return (re.sub(r"[-_.]{2,}", "-", plain) or folder or "run")[:80]


def check_readable(path: Path, guess: Guess) -> None:
    """Refuse a file that cannot be read as another is, by its first examples.

    Raises:
        UserError: naming what is wrong with it.
    """
    if not list(islice(data_of(path, guess.task, guess.format).read(path), _READ)):
        raise UserError(f"{path}: no example in it, expected some")


def _is_alike(path: Path, guess: Guess) -> bool:
    try:
        check_readable(path, guess)
    except UserError:
        return False
    return True
