"""The check of a recipe: ``fangyan check --json`` in a process of its own, one at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fangyan.ui import commands
from fangyan.ui.files import in_words

# Labels that are shown.
_SHOWN = 12


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes:
        digest: of the recipe's text that was checked.
        report: of ``fangyan check --json``; None where there is none.
        mistake: in a sentence, in place of a report.
    """

    digest: str
    report: dict[str, Any] | None
    mistake: str | None

    @property
    def memory(self) -> str | None:
        """Return the peak of memory, in words."""
        memory = (self.report or {}).get("memory")
        return in_words(int(memory["peak"])) if memory else None

    @property
    def time(self) -> str | None:
        """Return the time that training takes, in words."""
        seconds = (self.report or {}).get("seconds")
        return duration(float(seconds)) if seconds is not None else None

    @property
    def labels(self) -> list[tuple[str, int]]:
        """Return the most frequent labels of train."""
        found = (self.report or {}).get("labels", {}).get("train", {})
        return sorted(found.items(), key=lambda item: -item[1])[:_SHOWN]

    @property
    def more_labels(self) -> int:
        """Return how many labels are not among those."""
        return max(0, len((self.report or {}).get("labels", {}).get("train", {})) - _SHOWN)


class Checks:
    """Runs the check of a recipe, and keeps what the last one found."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: Path | None = None
        self._digest = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._output: tuple[IO[bytes], IO[bytes]] | None = None
        self._checked: Checked | None = None

    def start(self, file: Path, digest: str) -> None:
        """Begin to check a recipe; an earlier check ends.

        Args:
            file: of the recipe.
            digest: of its text.
        """
        with self._lock:
            self._end()
            self._file, self._digest, self._checked = file, digest, None
            self._output = (_temporary(), _temporary())
            self._process = commands.start(["check", str(file), "--json"], *self._output)

    def of(self, file: Path) -> Checked | bool:
        """Return what the check of a recipe has found; or whether it still runs."""
        with self._lock:
            if self._file != file:
                return False
            if self._checked is None and self._process is not None and self._process.poll() is not None:
                self._checked = self._read(self._process.returncode)
                self._close()
            return self._checked or self._process is not None

    def close(self) -> None:
        """End a check that runs."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)  # it keeps nothing
                self._process.wait()
            self._close()

    def _close(self) -> None:
        for file in self._output or ():
            file.close()
        self._process = self._output = None

    def _read(self, code: int) -> Checked:
        assert self._output is not None
        out, errors = (_text(file) for file in self._output)
        lines = [line for line in errors.splitlines() if line.strip()]
        try:
            report = json.loads(out)
        except ValueError:
            said = commands.sentence(lines) or (
                lines[-1] if lines else f"the check ended without a word ({code})"
            )
            return Checked(self._digest, None, said)
        return Checked(self._digest, report, None)


def _temporary() -> IO[bytes]:
    return tempfile.TemporaryFile()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 60:
        return "less than a minute"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"about {minutes} minute{'s' if minutes > 1 else ''}"
    return f"about {seconds / 3600:.1f} hours"
