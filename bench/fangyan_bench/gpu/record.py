"""What a part has measured so far, on disk after every entry: a run may be killed at any time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from fangyan_bench.gpu.page import page

Row = dict[str, Any]


class Record:
    """One part's entries by name, as ``PART.json`` and ``PART.md``.

    An entry's ``state`` is ``running``, ``done``, ``skipped`` (no time was left), ``missing`` (something is
    not installed) or ``failed``. A process that starts where another has died finds the dead one's entries.
    """

    def __init__(self, folder: Path, part: str):
        self.folder = folder
        self._json, self._page = folder / f"{part}.json", folder / f"{part}.md"
        self._part = part
        folder.mkdir(parents=True, exist_ok=True)
        found = json.loads(self._json.read_text(encoding="utf-8")) if self._json.exists() else {}
        self.about: Row = found.get("about", {})
        self.entries: dict[str, Row] = found.get("entries", {})

    def finished(self, name: str) -> bool:
        """Return whether an entry needs no further work."""
        return bool(self.entries.get(name, {}).get("state", "running") != "running")

    def killers(self, name: str) -> dict[str, str]:
        """Return the implementations that a process died of while preparing them, with a sentence each."""
        entry = self.entries.get(name, {})
        killers: dict[str, str] = dict(entry.get("killers", {}))
        if entry.get("state") == "running" and entry.get("implementation"):
            killers[entry["implementation"]] = "the process died or hung in its first calls or its capture"
        return killers

    def died_timing(self, name: str) -> bool:
        """Return whether a process died in the entry after all its implementations had been prepared."""
        entry = self.entries.get(name, {})
        return entry.get("state") == "running" and not entry.get("implementation")

    def running(self, name: str, implementation: str | None, killers: Row) -> None:
        """Record which implementation is to blame if nothing follows, and which have been."""
        self.entries[name] = {"state": "running", "implementation": implementation, "killers": killers}
        self._write_json()

    def put(self, name: str, state: str, **values: Any) -> None:
        """Record an entry's results; both files are whole when this returns."""
        self.entries[name] = {"state": state, **values}
        self.write()

    def write(self) -> None:
        """Write both files."""
        self._write_json()
        _replace(self._page, page(self._part, self.about, self.entries))

    def _write_json(self) -> None:
        _replace(self._json, json.dumps({"about": self.about, "entries": self.entries}, indent=1) + "\n")


class Budget:
    """A part's seconds, and whether the next entry still fits.

    Estimates are corrected by how long the entries before took beside theirs.
    """

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self._estimated = self._taken = 0.0

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()

    def needed(self, estimate: float) -> float:
        """Return the seconds that an entry of this estimate takes at this machine's pace."""
        return estimate * max(1.0, self._taken / self._estimated) if self._estimated else estimate

    def took(self, estimate: float, seconds: float) -> None:
        """Learn from an entry that has ended."""
        self._estimated += estimate
        self._taken += seconds


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
