"""The ``fangyan`` command in a process of its own, without the seconds that its imports take.

A server imports everything once and is forked for each command. It computes nothing itself, so that
no command misses a thread of it.
"""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import zip_longest
from multiprocessing import connection
from pathlib import Path


def server():
    """Return the context whose processes are forks of the server."""
    multiprocessing.forkserver._forkserver._stop()  # another's, with other imports
    context = multiprocessing.get_context("forkserver")
    modules = ["fangyan.cli", "fangyan.inference.load", "fangyan.training.train", "bitsandbytes"]
    # What a run imports on its way.
    modules += ["matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "jinja2"]
    modules += ["seqeval.metrics", "distutils.ccompiler", "transformers.models.electra.modeling_electra"]
    context.set_forkserver_preload(modules)
    return context


def run(folder, arguments, environment, out, err, before=None):
    """Do in the child what the console script does, after ``before``, if any."""
    gc.freeze()  # a collector that goes through what the server imported would copy all of its memory
    if before is not None:
        before()
    os.chdir(folder)
    # As in a terminal, whatever started the tests: a shell's background job ignores both.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.update(environment)
    for path, stream in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
    sys.argv = ["fangyan", *arguments]
    from fangyan.cli import main

    try:
        main()
    finally:
        sys.stdout.flush()


def of_ranks(count, port):
    """Return every rank's environment, as DeepSpeed's launcher sets it."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    common |= {"LOCAL_SIZE": str(count), "CROSS_RANK": "0", "CROSS_SIZE": "1"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


# Seconds in which ranks say why they end once one of them has failed.
_MOMENT = 10


class ForkedCommand:
    """A running command, one process per environment; with what tests use of :class:`subprocess.Popen`.

    Each process calls the function of its place in ``before`` first, where there is one.
    """

    def __init__(self, context, folder, arguments, environments=({},), before=()):
        self._processes, self._paths = [], []
        for environment, first in zip_longest(environments, before):
            output = Path(tempfile.mkdtemp(prefix=".output-", dir=folder))
            paths = [str(output / name) for name in ("stdout", "stderr")]
            process = context.Process(target=run, args=(str(folder), arguments, environment, *paths, first))
            process.start()
            self._processes.append(process)
            self._paths.append(paths)
        self.pids = [process.pid for process in self._processes]
        self.pid = self.pids[0]

    def poll(self):
        codes = [process.exitcode for process in self._processes]
        return next((code for code in codes if code), None if None in codes else 0)

    @property
    def returncode(self):
        return self.poll()

    def communicate(self, timeout=None):
        """Return what they wrote. One that fails ends the others, as a launcher does, after a moment."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None and (deadline is None or time.monotonic() < deadline):
            self._wait_a_moment()
        late = self.poll() is None
        end = time.monotonic() + (0 if late else _MOMENT)
        while time.monotonic() < end and any(process.is_alive() for process in self._processes):
            self._wait_a_moment()
        for process in self._processes:
            if process.is_alive():
                process.kill()
                process.join()
        if late:
            raise subprocess.TimeoutExpired("fangyan", timeout)
        written = [[Path(path) for path in paths] for paths in zip(*self._paths, strict=True)]
        return [
            "".join(path.read_text(encoding="utf-8") for path in paths if path.exists()) for paths in written
        ]

    def _wait_a_moment(self):
        running = [process.sentinel for process in self._processes if process.exitcode is None]
        connection.wait(running, 0.1)
