"""The interface of a tracker, and what trackers keep in a run folder."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from fangyan.config import Config
from fangyan.files import whole_file
from fangyan.packages import require
from fangyan.trackers.callback import Callback

# In a run folder: by tracker, what finds its run again where this one resumes.
KEPT = "trackers.json"


class TrackerConfig(Config, ABC):
    """An item of the recipe's ``trackers``. Each is a subclass with a ``name`` tag.

    Attributes:
        module: that the tracker imports.
        package: that has it, and that fangyan's extra of the tracker's name installs.
    """

    name: str
    module: ClassVar[str]
    package: ClassVar[str]

    def check(self) -> None:
        """Refuse to start a run whose tracker could not.

        Raises:
            UserError: if its package is not installed.
        """
        require(self.module, f"trackers: {self.name}", self.package)

    @abstractmethod
    def build(self) -> Callback:
        """Return what follows a run."""


def scalars(kind: str, split: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return values by the names that trackers show: ``train/loss``, ``dev/joint_f1``."""
    return {f"{split or kind}/{name}": value for name, value in values.items()}


def read_kept(folder: Path, name: str) -> dict[str, Any]:
    """Return what a tracker has kept in a run folder; nothing where that is damaged or not there."""
    try:
        found = json.loads((folder / KEPT).read_text(encoding="utf-8"))
        return dict(found[name])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def keep(folder: Path, name: str, values: dict[str, Any]) -> None:
    """Keep what finds a tracker's run again, beside what other trackers have kept."""
    try:
        found = dict(json.loads((folder / KEPT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        found = {}
    with whole_file(folder / KEPT) as partial:
        partial.write_text(json.dumps({**found, name: values}, indent=1), encoding="utf-8")
