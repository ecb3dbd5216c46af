"""Comparisons that need no clock: instructions and compiler reports against the committed ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import triton
from fangyan_kernels.testing.offline import ARCHITECTURES, SHARED_LIMIT, compile_offline

from fangyan_bench import instructions
from fangyan_bench.harness.machine import BENCH
from fangyan_bench.registry import ops

FOLDER = BENCH / "results" / "static"
GROWTH = 1.02  # tolerance on instruction counts: below it is compiler noise


def instruction_counts() -> dict[str, Any]:
    """Return what is committed as ``instructions.json``."""
    return {"compiler": instructions.compiler(), "counts": instructions.count_instructions()}


# One of each generation; tests/kernels compile for all of them.
QUICK_ARCHITECTURES = ("sm_80", "sm_90", "sm_120")


def kernel_reports(architectures: Iterable[str] = ARCHITECTURES) -> dict[str, Any]:
    """Return what is committed as ``kernels.json``, or its part of some architectures."""
    reports = {
        f"{op.name}/{kernel.name}/{architecture}": asdict(compile_offline(kernel, architecture))
        for op in ops().values()
        for kernel in op.kernels
        for architecture in architectures
    }
    # Tiles for chips with more shared memory: these run others.
    reports = {name: report for name, report in reports.items() if report["shared"] <= _limit(name)}
    return {"triton": triton.__version__, "reports": reports}


def grown_counts(committed: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """Return a sentence for every kernel that executes more than it did, or that is not committed."""
    problems = []
    for name, count in found.items():
        before = committed.get(name)
        if before is None:
            problems.append(f"{name}: {count:,} instructions, none committed")
        elif count > GROWTH * before:
            problems.append(f"{name}: {count:,} instructions, {count / before:.2f}x the committed {before:,}")
    return problems


def worse_reports(committed: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return a sentence for every kernel that spills, no longer fits, lost its tensor cores, or grew."""
    here = {name.rpartition("/")[2] for name in found}
    gone = [name for name in committed if name.rpartition("/")[2] in here and name not in found]
    problems = [f"{name}: it no longer fits the chip, or is no longer declared" for name in gone]
    for name, now in found.items():
        limit = _limit(name)
        if now["shared"] > limit:
            problems.append(f"{name}: {now['shared']:,} bytes of shared memory, the chip has {limit:,}")
        before = committed.get(name)
        if before is None:
            problems.append(f"{name}: no report is committed")
            continue
        problems += [
            f"{name}: {now[field]:,} {unit}, {before[field]:,} committed"
            for field, unit in (("spills", "bytes spilled"), ("shared", "bytes of shared memory"))
            if now[field] > before[field]
        ]
        if now["registers"] > before["registers"] + 8:  # a unit of allocation on NVIDIA's chips
            problems.append(f"{name}: {now['registers']} registers, {before['registers']} committed")
        if now["programs_per_sm"] < before["programs_per_sm"]:
            problems.append(
                f"{name}: {now['programs_per_sm']} programs per multiprocessor, "
                f"{before['programs_per_sm']} committed"
            )
        narrow, narrow_before = (
            sum(r[kind].get(width, 0) for kind in ("loads", "stores") for width in "12")
            for r in (now, before)
        )
        if narrow > narrow_before:
            problems.append(f"{name}: {narrow} accesses of 1 or 2 bytes, {narrow_before} committed")
        mix, old = now["instructions"], before["instructions"]
        if old.get("tensor core") and not mix.get("tensor core"):
            problems.append(f"{name}: no tensor-core instruction, {old['tensor core']} committed")
        if mix["total"] > 1.1 * old["total"]:
            problems.append(f"{name}: {mix['total']:,} instructions, {old['total']:,} committed")
    return problems


def _limit(name: str) -> int:
    """Return the bytes of shared memory that a block of a report's chip can have."""
    return SHARED_LIMIT[name.rpartition("/")[2]]


def read(name: str) -> dict[str, Any]:
    """Return what is committed under a name."""
    committed: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return committed


def write(name: str, content: Mapping[str, Any]) -> None:
    """Write what is to be committed under a name, one line per entry of its tables."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    fields = [f"{json.dumps(key)}: {_lines(value)}" for key, value in content.items()]
    (FOLDER / name).write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


def _lines(value: Any) -> str:
    if not isinstance(value, Mapping):
        return json.dumps(value)
    entries = [f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items()]
    return "{\n" + ",\n".join(entries) + "\n}"
