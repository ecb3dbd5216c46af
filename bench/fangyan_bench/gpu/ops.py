"""The ops part: every entry's implementations in turns, as CUDA graphs and as eager calls."""

from __future__ import annotations

import faulthandler
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fangyan_bench.gpu.entries import DRY_ENTRIES, ENTRIES, TIMING_BUDGET, Entry, planned_seconds
from fangyan_bench.gpu.graphs import AsksTheHost, Replay, kernels
from fangyan_bench.gpu.predictions import compare, of_entry
from fangyan_bench.gpu.record import Budget, Record, Row
from fangyan_bench.gpu.warm import warm_up
from fangyan_bench.harness.machine import PeakRates, gpu_lost, measure_peak_rates
from fangyan_bench.harness.memory import peak_memory
from fangyan_bench.harness.op import Implementation, Op, Shape
from fangyan_bench.harness.suite import OpMeasurements, prepare
from fangyan_bench.harness.timing import Timed, TimingBudget, Trial, describe_error, input_sets, interleave
from fangyan_bench.registry import missing_ops, ops

WARM_UP_SECONDS = 40.0  # in parallel processes, at most
START_SECONDS = 8.0  # imports, peak rates
HANGING = 25.0  # seconds beyond the plan after which an entry's process ends itself
DRY_TIMING_BUDGET = TimingBudget(2, 2, 0.1)


def run(record: Record, seconds: float, dry: bool) -> None:
    """Measure the entries in order until the seconds are over; what the record has is not repeated."""
    budget = Budget(seconds)
    entries = DRY_ENTRIES if dry else ENTRIES
    if "compilation" not in record.about:
        record.about["compilation"] = "under way"
        record.write()
        record.about["compilation"] = warm_up(dry, WARM_UP_SECONDS)
        record.write()
    peak_rates = measure_peak_rates()
    record.about["peak rates"] = {
        "bytes per second": peak_rates.bytes_per_second,
        **{f"FLOP/s {str(d).removeprefix('torch.')}": flops for d, flops in peak_rates.flops.items()},
    }
    record.write()
    measure(entries, record, budget, peak_rates, DRY_TIMING_BUDGET if dry else TIMING_BUDGET, watch=not dry)


def measure(
    entries: Sequence[Entry],
    record: Record,
    budget: Budget,
    peak_rates: PeakRates,
    timing_budget: TimingBudget,
    watch: bool,
) -> None:
    """Measure each entry that fits the time; whatever one of them raises, the next has its turn.

    Args:
        entries: in order.
        record: receives the results.
        budget: seconds that are left.
        peak_rates: of the card.
        timing_budget: of every entry.
        watch: end this process if an entry hangs; its parent starts another.
    """
    for entry in entries:
        name = str(entry)
        if record.finished(name):
            continue
        op = ops().get(entry.op)
        if op is None:
            record.put(name, "missing", reason=missing_ops().get(entry.op, "no file declares it"))
            continue
        if record.died_timing(name):
            record.put(name, "failed", reason="its process died or hung while it was timed")
            continue
        planned = planned_seconds(entry, floor(op, entry.shape, peak_rates)[0])
        if (needed := budget.needed(planned)) > budget.left:
            record.put(name, "skipped", reason=f"it needs {needed:.0f} s, {budget.left:.0f} s are left")
            continue
        if watch:
            faulthandler.dump_traceback_later(needed + HANGING, exit=True)
        start = time.perf_counter()
        try:
            found = _measure(entry, op, record, peak_rates, timing_budget)
            record.put(name, "done", seconds=time.perf_counter() - start, planned=planned, **found)
            if found["broken"] and watch:
                sys.exit("a capture has failed: the other entries need a process whose allocator is whole")
        except Exception as error:
            if gpu_lost():  # the next process leaves out whoever ran last
                raise
            record.put(name, "failed", reason=describe_error(error))
        finally:
            if watch:
                faulthandler.cancel_dump_traceback_later()
            gc.collect()
            torch.cuda.empty_cache()
        budget.took(planned, time.perf_counter() - start)


def floor(op: Op, shape: Shape, peak_rates: PeakRates) -> tuple[float, str]:
    """Return the seconds of the op's bytes or operations at the peak rates, whichever is more, and which."""
    cost = op.cost(shape, op.passes[-1])
    moving = cost.bytes / peak_rates.bytes_per_second
    computing = cost.flops / peak_rates.flops[shape.dtype]
    return max(moving, computing), "bytes" if moving > computing else "operations"


def _measure(entry: Entry, op: Op, record: Record, peak_rates: PeakRates, timing_budget: TimingBudget) -> Row:
    shape, pass_name, name = entry.shape, op.passes[-1], str(entry)
    killers = record.killers(name)
    measured = OpMeasurements(failed=dict(killers))
    chosen = [c for c in entry.implementations(op) if c.name not in killers]

    def blame(who: str | None) -> None:
        record.running(name, who, killers)

    blame(None)
    sets = input_sets(op, shape)
    trials = prepare(op, shape, chosen, sets, measured, blame)
    blame(None)
    eager = _interleaved(trials, pass_name, timing_budget, measured.failed, blame)
    replays, not_captured, broken = {}, {}, False
    for who in eager:
        blame(who)
        try:
            replays[who] = Replay(trials[who], pass_name, shape.device)
        except Exception as error:
            not_captured[who] = describe_error(error)
            broken = broken or not isinstance(error, AsksTheHost)
    blame(None)
    graph = _interleaved(replays, pass_name, timing_budget, not_captured, blame)
    least, bound = floor(op, shape, peak_rates)
    implementations: dict[str, Row] = {}
    for implementation in chosen:
        if implementation.name in eager:
            ours = implementation.role == "ours"
            implementations[implementation.name] = {
                "role": implementation.role,
                "graph": _median(graph.get(implementation.name)),
                "eager": _median(eager[implementation.name]),
                "rounds": {"graph": graph.get(implementation.name), "eager": eager[implementation.name]},
                "error": measured.errors.get(implementation.name),
                "peak_memory": _memory(op, shape, implementation),
                "first_call": measured.first_call_seconds[implementation.name],
                "kernels": _kernels(trials[implementation.name], pass_name, shape.device) if ours else [],
            }
    _add_ratios(implementations, op.baseline.name, least)
    return {
        "floor": least,
        "bound": bound,
        "implementations": implementations,
        "predictions": _predicted(name, implementations, least),
        "missing": measured.missing,
        "failed": measured.failed,
        "not_captured": not_captured,
        "broken": broken,
    }


def _interleaved(
    trials: Mapping[str, Timed],
    pass_name: str,
    timing_budget: TimingBudget,
    failed: dict[str, str],
    blame: Callable[[str | None], None],
) -> dict[str, list[float]]:
    """Time all; if the GPU is lost meanwhile, the first to fail is to blame for all that fail after it."""
    before = set(failed)
    times = interleave(trials, pass_name, timing_budget, failed)
    if gpu_lost():
        first = next((name for name in failed if name not in before), None)
        blame(first)
        raise RuntimeError(f"the GPU is lost since {first}: {failed.get(first or '')}")
    return times


def _memory(op: Op, shape: Shape, implementation: Implementation) -> int | None:
    """Return the peak memory on a GPU; on the CPU it takes a process, and is not rehearsed."""
    try:
        return peak_memory(op, shape, implementation) if shape.device == "cuda" else None
    except Exception:
        return None


def _kernels(trial: Trial, pass_name: str, device: str) -> list[dict[str, Any]]:
    try:
        return kernels(trial.call_each(pass_name), trial.sets, device)
    except Exception as error:
        return [{"name": describe_error(error), "seconds": 0.0, "launches": 0.0}]


def _add_ratios(implementations: dict[str, Row], baseline: str, least: float) -> None:
    """Add ratios over the floor and over the baseline: of graphs, or of eager calls if either has none."""
    plain = implementations.get(baseline)
    for found in implementations.values():
        found["over_floor"] = (found["graph"] or found["eager"]) / least
        kind = "graph" if plain and plain["graph"] and found["graph"] else "eager"
        found["over_baseline"] = found[kind] / plain[kind] if plain else None


def _predicted(name: str, implementations: Mapping[str, Row], least: float) -> Row:
    """Compare every prediction of the entry with what was measured."""
    found: Row = {}
    for who, prediction in of_entry(name).items():
        if who in implementations:
            kind = "graph" if implementations[who]["graph"] else "eager"
            others = {other: row[kind] for other, row in implementations.items() if row[kind]}
            found[who] = compare(prediction, implementations[who][kind], {"floor": least, **others})
    return found


def _median(seconds: Sequence[float] | None) -> float | None:
    return statistics.median(seconds) if seconds else None
