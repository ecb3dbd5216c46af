"""A small disk of its own, which tests fill."""

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
    """Take all the room of the disk that ``folder`` is on, but for ``leave`` bytes; return the file."""
    path = folder / "other people's files"
    free = shutil.disk_usage(folder).free - leave
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, free)
    os.close(descriptor)
    return path
