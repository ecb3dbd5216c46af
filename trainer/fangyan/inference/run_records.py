"""What a run has written down as it went: the lines of its ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

# Ends the split's name in records of the best checkpoint's metrics, written at the end of a run.
BEST = "-best"


def read_records(metrics: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a ``metrics.jsonl``, without damaged lines."""
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record
