"""Files that a run writes: whole or not there, and where a disk is full, a sentence on what to do."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fangyan.errors import RESUMING, disk_error

# What to do where a run cannot write.
RESUME = f"after making room, {RESUMING} the run"
# What to do where another command cannot.
REPEAT = "after making room, run the command again"


@contextmanager
def writing(path: Path, advice: str = RESUME) -> Iterator[None]:
    """Say which file could not be written, why, and what to do.

    Raises:
        UserError: where the system does not let the block write.
    """
    try:
        yield
    except Exception as error:
        found = _of_the_system(error)
        if found is None:
            raise
        raise disk_error(path, found, advice) from error


def _of_the_system(error: Exception) -> OSError | None:
    """Return the error of the system behind another that quotes it: of libraries in Rust, of shutil."""
    if isinstance(error, OSError) and not isinstance(error, shutil.Error):
        return error
    number = re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error))
    if number is None:
        return None
    code = int(number[1] or number[2])
    return OSError(code, os.strerror(code))


@contextmanager
def whole_file(path: Path, advice: str = RESUME) -> Iterator[Path]:
    """Yield where to write a file; it takes its place when it is whole and on the disk.

    Its folder is made. A kill leaves a file whose name begins with a dot, which the next try replaces.

    Raises:
        UserError: as :func:`writing` does; the earlier file stays.
    """
    partial = path.with_name(f".{path.name}")
    with writing(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            sync(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def whole_folder(folder: Path, advice: str) -> Iterator[Path]:
    """Yield a new folder to fill, which takes its name when it is whole and on the disk; see :func:`publish`.

    Raises:
        UserError: as :func:`writing` does; no part of the folder stays.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    with writing(folder, advice):
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        try:
            partial.mkdir(parents=True)
            yield partial
            publish(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def publish(partial: Path, folder: Path) -> None:
    """Give a folder that is whole its name, once all of it is on the disk; an earlier one is replaced."""
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    old = folder.with_name(f"{folder.name}-old.partial")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: a power failure can undo a rename."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # of a folder that may be written to, and not listed
        os.sync()
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
