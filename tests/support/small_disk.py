"""A small disk of its own, which tests fill."""

import errno
import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def mounted(folder, size):
    """Mount a disk of ``size`` bytes in memory."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting is not allowed here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, leave=0):
    """Take all the room of the disk that ``folder`` is on, but for ``leave`` bytes; return the file.

    Others may write there meanwhile: what is free is asked again when it was less by the time it was taken.
    """
    path = folder / "other people's files"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while (free := shutil.disk_usage(folder).free - leave) > 0:
            try:
                os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, free)
                break
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    finally:
        os.close(descriptor)
    return path
