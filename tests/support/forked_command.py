"""The ``fangyan`` command in a process of its own, without the seconds that its imports take.

A server imports everything once and is forked for each command. It computes nothing itself, so that
no command misses a thread of it.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def server():
    """The context whose processes are forks of the server."""
    multiprocessing.forkserver._forkserver._stop()  # another's, with other imports
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fangyan.loop", "fangyan.predict", "fangyan.cli", "bitsandbytes"])
    return context


def run(folder, arguments, out, err):
    """The child's work: what the console script does."""
    os.chdir(folder)
    for path, stream in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = ["fangyan", *arguments]
    from fangyan.cli import main

    try:
        main()
    finally:
        sys.stdout.flush()


class ForkedCommand:
    """A running command, with the methods of :class:`subprocess.Popen` that tests use."""

    def __init__(self, context, folder, arguments):
        output = Path(tempfile.mkdtemp(prefix=".output-", dir=folder))
        self._paths = [str(output / name) for name in ("stdout", "stderr")]
        self._process = context.Process(target=run, args=(str(folder), arguments, *self._paths))
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    @property
    def returncode(self):
        return self._process.exitcode

    def communicate(self, timeout=None):
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            raise subprocess.TimeoutExpired("fangyan", timeout)
        return [Path(path).read_text() if Path(path).exists() else "" for path in self._paths]
