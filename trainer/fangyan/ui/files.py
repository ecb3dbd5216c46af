"""The folder that the page was started in: what is in it, and what is added. Nothing above it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fangyan.config import short
from fangyan.errors import UserError
from fangyan.files import whole_file

# Bytes of an uploaded file.
MOST_UPLOADED = 200_000_000
# Entries of a folder that are shown.
_SHOWN = 500
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f/\\]")
_REPEAT = "after making room, upload it again"


@dataclass(frozen=True)
class Entry:
    """A file or folder.

    Attributes:
        name: of it.
        path: relative to the page's folder.
        is_folder: whether it is one.
        size: in words, of a file.
    """

    name: str
    path: str
    is_folder: bool
    size: str


def inside(name: str) -> Path:
    """Return a path within the current folder, relative to it.

    Raises:
        UserError: if it leads out of it, by ``..`` or a link.
    """
    path = Path(os.path.normpath(name or "."))
    try:
        root = Path.cwd().resolve()
        if path.is_absolute():
            path = path.relative_to(root)
        if (root / path).resolve().is_relative_to(root) and "\0" not in name:
            return path
    except (ValueError, OSError, RuntimeError):
        pass
    raise UserError(
        f"{short(name)}: not in the folder that the page was started in, expected a file within it"
    )


def entries(folder: Path) -> tuple[list[Entry], int]:
    """Return the folders and files in a folder, folders first, and how many more there are.

    Raises:
        UserError: if it cannot be listed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = []
    for path in folder.iterdir():
        if path.name.startswith(".") or not _leads_inside(path):
            continue
        is_folder = path.is_dir()
        if is_folder or path.is_file():
            size = "" if is_folder else in_words(path.stat().st_size)
            found.append(Entry(path.name, str(path), is_folder, size))
    found.sort(key=lambda entry: (not entry.is_folder, entry.name.casefold()))
    return found[:_SHOWN], max(0, len(found) - _SHOWN)


def in_words(size: int) -> str:
    """Return a number of bytes in words."""
    for unit, least in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size} bytes"


def keep_upload(name: str, content: BinaryIO, folder: Path) -> Path:
    """Write an uploaded file into a folder, and return its path; the same file again is the one there is.

    Raises:
        UserError: if its name is none for a file, it is empty, or another file has the name.
    """
    if not name or name.startswith(".") or _CONTROL.search(name) or len(name.encode()) > 200:
        raise UserError(f"{short(name)}: no name for a file, expected one such as train.conllu")
    path = inside(str(folder / name))
    with whole_file(path, _REPEAT) as partial:
        with partial.open("wb") as file:
            shutil.copyfileobj(content, file)
        if not partial.stat().st_size:
            raise UserError(f"{name}: the file is empty, expected examples to learn from")
        if path.exists() and (not path.is_file() or _digest(path) != _digest(partial)):
            raise UserError(f"{path}: another file has this name, expected a new name: rename yours first")
    return path


def free_name(stem: str, ending: str, taken: Sequence[Path] = ()) -> str:
    """Return a name that neither a file nor another of some paths has: ``stem``, or with a number behind."""
    number, name = 1, stem
    while Path(f"{name}{ending}").exists() or any((folder / name).exists() for folder in taken):
        number += 1
        name = f"{stem}-{number}"
    return name


def _leads_inside(path: Path) -> bool:
    try:
        inside(str(path))
    except UserError:
        return False
    return True


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.digest()
