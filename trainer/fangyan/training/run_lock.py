"""One run at a time in a run folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from fangyan.errors import UserError

LOCK = ".lock"
# What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLock:
    """Holds a run folder until :meth:`release` or the end of the process, however it ends.

    The lock is of the system (``flock``) and lies in the folder's ``.lock``, which says whose it is; the file
    itself holds nothing up.

    Args:
        folder: of the run, which is made.

    Raises:
        UserError: if another process holds the folder, saying which.
    """

    def __init__(self, folder: Path):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"run_dir: {folder} is a file, expected a folder or a new name")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = self._holder()
            os.close(self._descriptor)
            raise UserError(f"run_dir: {folder} is in use by {other}; {_EXPECTED}") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        if not _is_file(folder / LOCK, self._descriptor):
            # Whoever held it has moved the folder aside meanwhile, and runs in a new one.
            os.close(self._descriptor)
            raise UserError(f"run_dir: {folder} is in use by another run that has just begun; {_EXPECTED}")
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, holder.encode(), 0)
        except OSError:  # of a full disk
            self.release()
            raise

    def _holder(self) -> str:
        try:
            holder = json.loads(os.pread(self._descriptor, 1000, 0))
            return f"process {int(holder['pid'])} on {holder['host']}"
        except (ValueError, KeyError, TypeError):
            return "another process"

    def release(self) -> None:
        """Let others have the folder; remove it if nothing else came into it."""
        with suppress(OSError):
            if _is_file(self._folder / LOCK, self._descriptor):
                (self._folder / LOCK).unlink()
                self._folder.rmdir()  # fails where it holds anything
        os.close(self._descriptor)


_EXPECTED = "expected another run_dir, or to wait until that run has ended"


def _is_file(path: Path, descriptor: int) -> bool:
    """Return whether a path is still that of an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
