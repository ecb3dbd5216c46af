"""The errors that are shown to users."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

# Errors that end where there is more room; torch's, which have no number, are taken for one.
OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How a run that has ended is resumed; trials of tune are runs, too.
RESUMING = "train --resume auto, or the same tune command, resumes"
# Characters of a sentence: it may quote what a file or a name has of thousands.
_LONGEST = 600


def shorten(sentence: str) -> str:
    """Return a sentence without the middle of what is too long to read."""
    return sentence if len(sentence) <= _LONGEST else f"{sentence[:300]} … {sentence[-250:]}"


class UserError(Exception):
    """Report bad input in one sentence: where, what was found, what was expected.

    The command line prints the message alone, without a traceback, and exits with ``exit_code``.

    Args:
        message: the sentence.
        on_every_rank: whether all ranks of a run meet the same mistake, so that one need say it.
    """

    exit_code = 2

    def __init__(self, message: str, on_every_rank: bool = True):
        super().__init__(shorten(message))
        self.on_every_rank = on_every_rank


class RankLost(UserError):
    """Report that another rank of the run has ended, or answers no longer. Nobody's input is at fault.

    Args:
        message: the sentence.
        on_every_rank: as for :class:`UserError`.
        exit_code: of this process; that of the other rank, where it said why it ends.
    """

    def __init__(self, message: str, on_every_rank: bool = True, exit_code: int = 1):
        super().__init__(message, on_every_rank)
        self.exit_code = exit_code


class Diverged(UserError):
    """Report a loss or weights that are not finite. Every rank of a run raises it, at the same step."""


class Stopped(UserError):
    """Report that a signal ended the run at a checkpoint. Exit code 0, or 130 for Ctrl-C."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def disk_error(path: Path, error: OSError | RuntimeError, advice: str) -> UserError:
    """Return the sentence about a file or folder that cannot be written.

    Args:
        path: what was being written; an error of opening a file names it more exactly, those of ``write`` and
            ``close`` name none.
        error: of the system, or of a library that has met one.
        advice: what to do about it.
    """
    name = getattr(error, "filename", None)
    if isinstance(name, str | bytes):
        path = Path(os.fsdecode(name))
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    if getattr(error, "errno", None) not in (None, *OF_ROOM):
        return UserError(f"{path} cannot be written ({reason})")
    free = free_space(path) / 1e9
    return UserError(f"{path} cannot be written ({reason}); {free:.3f} GB are free on its disk; {advice}")


def free_space(path: Path) -> int:
    """Return the bytes that are free on the disk of a file or folder, which need not be there."""
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(folder).free
