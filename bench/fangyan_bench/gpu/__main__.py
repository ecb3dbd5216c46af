"""One part of a GPU run, in a process that may die.

``python -m fangyan_bench.gpu PART FOLDER --seconds S``
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from fangyan_bench.gpu.record import Record


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("values", "ops", "steps", "largest", "tiles"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    part = importlib.import_module(f"fangyan_bench.gpu.{arguments.part}")
    part.run(Record(arguments.folder, arguments.part), arguments.seconds, arguments.dry)


if __name__ == "__main__":
    main()
