"""Measure how far apart a model's logits are in each layout, and leaks, in units of the self-check's step.

    PYTHONPATH=tests/support python bench/self_check.py OUT.json [--minutes 5]

Runs a tiny random model of every family of ``tests/support/model_families.py``, in float32, bfloat16 and
float16, on the GPU where there is one. ``fangyan/models/self_check.py`` takes its budget from the results.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from fangyan.device import device
from fangyan.models.packed import PackedModel
from fangyan.models.self_check import SelfCheck, difference
from fangyan.models.structure import evaluating
from model_families import FAMILIES, Family

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("varlen", "rows", "padded", "unpadded")


def measure(family: Family, dtype: torch.dtype) -> dict[str, Any]:
    """Return the step, and by layout the difference in steps or what the model raises.

    In 16 bits ``leaks`` names the layouts in which other sequences move a sequence's logits.
    """
    torch.manual_seed(0)
    model = family.auto_model.from_config(family.config(), dtype=dtype).to(device()).eval()
    packed = PackedModel(model, "padded")
    check = SelfCheck(packed)
    found: dict[str, Any] = {"step": check.step, "leaks": []}
    for layout in LAYOUTS:
        try:
            with evaluating(packed):
                packed.use_layout(layout)
                together = check.logits_together()
                found[layout] = difference(together, check.alone) / check.step
                if dtype != torch.float32 and layout != "unpadded" and check.leaks(together):
                    found["leaks"].append(layout)
        except Exception as error:  # in any way that a model says it
            found[layout] = f"{type(error).__name__}: {str(error)[:100]}"
    return found


def main() -> None:
    """Measure all families until the minutes are over; the file is whole after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    end = time.monotonic() + 60 * arguments.minutes
    rows: list[dict[str, Any]] = []
    for family in FAMILIES:
        for dtype in DTYPES:
            if time.monotonic() > end:
                print(f"no time for {family.name} and those after it")
                return
            row = {"family": family.name, "dtype": str(dtype).removeprefix("torch.")}
            try:
                row |= measure(family, dtype)
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {str(error)[:100]}"
            rows.append(row)
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
