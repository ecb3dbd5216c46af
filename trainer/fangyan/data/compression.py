"""Files that may be compressed, told by the ending of their name."""

from __future__ import annotations

import gzip
import importlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import ModuleType
from typing import IO, Any

from fangyan.errors import UserError

# Endings of compressed files.
COMPRESSED = (".gz", ".zst")


def suffix(path: str | PurePath) -> str:
    """Return the ending of a file's name in lower case, without that of its compression."""
    return _plain(path).suffix.lower()


def stem(path: str | PurePath) -> str:
    """Return a file's name without its ending and that of its compression."""
    return _plain(path).stem


def _plain(path: str | PurePath) -> PurePath:
    name = PurePath(path)
    return name.with_suffix("") if name.suffix.lower() in COMPRESSED else name


@contextmanager
def open_file(path: Path, mode: str = "rb", encoding: str | None = None) -> Iterator[IO[Any]]:
    """Open a file that is plain, ``.gz`` or ``.zst``.

    Args:
        path: of the file.
        mode: ``rb``, or ``wt`` with an encoding, which leaves line ends as they are.
        encoding: of text.

    Raises:
        UserError: naming a compressed file that is damaged or cut off, when it is read.
    """
    newline = None if encoding is None else ""
    ending = path.suffix.lower()
    if ending not in COMPRESSED:
        with path.open(mode, encoding=encoding, newline=newline) as file:
            yield file
        return
    module = gzip if ending == ".gz" else _zstd(path)
    damaged = (EOFError, zlib.error, gzip.BadGzipFile if ending == ".gz" else module.ZstdError)
    try:
        with module.open(path, mode, encoding=encoding, newline=newline) as file:
            yield file
    except damaged as error:
        raise UserError(f"{path}: cannot be decompressed: {error}; expected a whole {ending} file") from None


def _zstd(path: Path) -> ModuleType:
    for name in ("compression.zstd", "backports.zstd"):  # the first is of Python 3.14
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UserError(
        f"{path}: needs the package backports.zstd, which is not installed; run: pip install backports.zstd"
    )
