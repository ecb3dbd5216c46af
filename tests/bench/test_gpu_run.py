"""A GPU run that cannot fail, on the CPU: every part writes, and nothing that dies takes others with it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import hanging_part
import pytest
import torch

import gpu
from fangyan_bench.gpu import ops as ops_part
from fangyan_bench.gpu import predictions as predictions_module
from fangyan_bench.gpu import warm
from fangyan_bench.gpu.decisions import decisions
from fangyan_bench.gpu.entries import DRY_ENTRIES, ENTRIES, Entry, planned_seconds
from fangyan_bench.gpu.ops import DRY_TIMING_BUDGET, START_SECONDS, WARM_UP_SECONDS, floor, measure
from fangyan_bench.gpu.predictions import compare, predictions
from fangyan_bench.gpu.record import Budget, Record
from fangyan_bench.gpu.steps import ENTRIES as STEPS
from fangyan_bench.harness.machine import PeakRates
from fangyan_bench.harness.op import Cost, Implementation, Op, Shape, function
from fangyan_bench.registry import find_op, missing_ops, ops
from gpu import DEFAULT, GRACE, PARTS

ROOT = Path(__file__).parents[2]
NOMINAL = PeakRates(3e12, {torch.bfloat16: 7e14})  # an H100's, to plan with; a run measures its own


def square(x):
    return (x * x).sum()


def inputs(shape, generator):
    return (torch.randn(shape["T"], 4, generator=generator).requires_grad_(),)


SHAPE = Shape("small", {"T": 8})
OP = Op(
    name="square",
    module=__name__,
    shapes=(SHAPE,),
    inputs=inputs,
    reference=square,
    implementations=(Implementation("eager", "baseline", function(square)),),
    cost=lambda _shape, _pass_name: Cost(1.0, 1.0),
)


def measured(folder, entries, monkeypatch, seconds=60.0, timing_budget=DRY_TIMING_BUDGET):
    monkeypatch.setattr(ops_part, "ops", lambda: {"square": OP, **ops()})
    record = Record(folder, "ops")
    peak_rates = PeakRates(1e10, {torch.float32: 1e10})
    measure(entries, record, Budget(seconds), peak_rates, timing_budget, watch=False)
    return json.loads((folder / "ops.json").read_text(encoding="utf-8"))["entries"], (
        folder / "ops.md"
    ).read_text(encoding="utf-8")


def raising(x):
    raise NotImplementedError("no kernel\nfor this card")


def entry(*implementations, name="small"):
    return Entry("square", replace(SHAPE, name=name), ("eager",), implementations)


@pytest.mark.slow
def test_gpu_run_with_a_killed_process(tmp_path):
    """The whole run as a command; its ops part is killed at its first result, and continues."""
    parts = [part for part in PARTS if part not in ("largest", "tiles")]  # ops again; it has a file of tests
    command = [sys.executable, "bench/gpu.py", str(tmp_path), "--dry", "--parts", ",".join(parts)]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    json_of_ops, before = tmp_path / "ops.json", {}
    while not before and run.poll() is None:
        time.sleep(0.02)
        entries = (
            json.loads(json_of_ops.read_text(encoding="utf-8"))["entries"] if json_of_ops.exists() else {}
        )
        before = {name: found for name, found in entries.items() if found["state"] == "done"}
    killed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    for pid, parent, *arguments in (line.split() for line in killed.splitlines()):
        if parent == str(run.pid) and "fangyan_bench.gpu" in arguments:
            os.kill(int(pid), signal.SIGKILL)
    assert (tmp_path / "ops.md").read_text(encoding="utf-8").count("graph / floor") == len(before)
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 0, said
    assert "ops: its process died with -9" in said, said
    found = {part: json.loads((tmp_path / f"{part}.json").read_text(encoding="utf-8")) for part in parts}
    assert all(
        re.search(r"[1-9]\d* passed", (tmp_path / name).read_text(encoding="utf-8"))
        for name in ("values.md", "README.md")
    )
    assert set(found["ops"]["entries"]) == set(map(str, DRY_ENTRIES)) | set(before)
    assert before.items() <= found["ops"]["entries"].items()
    states = {state["state"] for part in parts for state in found[part]["entries"].values()}
    assert states <= ({"passed", "done"} if not missing_ops() else {"passed", "done", "missing"}), found
    assert found["ops"]["about"]["compilation"]["not in time"] == 0
    assert {"card", "torch", "triton", "commit", "seconds"} <= set(
        json.loads((tmp_path / "machine.json").read_text(encoding="utf-8"))
    )


def test_measure_peer_that_raises(tmp_path, monkeypatch):
    peers = (
        Implementation("peer", "peer", function(raising)),
        Implementation("fangyan", "ours", function(square)),
    )
    second = entry(peers[1], name="second")
    entries, page = measured(tmp_path, [entry(*peers), second], monkeypatch)
    first = entries["square/small-T8-float32"]
    assert first["failed"] == {"peer": "NotImplementedError: no kernel for this card"}
    assert set(first["implementations"]) == {"eager", "fangyan"}
    ours = first["implementations"]["fangyan"]
    assert ours["graph"] > 0
    assert ours["kernels"]
    assert ours["over_floor"] == pytest.approx(ours["graph"] / first["floor"])
    assert entries[str(second)]["state"] == "done"
    assert "no kernel for this card" in page
    assert "Nothing was predicted of it" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_gpu_run_without_a_gpu(tmp_path):
    command = [sys.executable, gpu.__file__, str(tmp_path / "out")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr == "bench/gpu.py: PyTorch finds no CUDA GPU, expected a GPU; --dry runs on the CPU\n"
    assert not (tmp_path / "out").exists()


def test_measure_after_a_process_died(tmp_path, monkeypatch):
    entry_of_all = entry(Implementation("fangyan", "ours", function(square)))
    other = entry(name="other")
    record = Record(tmp_path, "ops")
    record.running(str(entry_of_all), "fangyan", {"peer": "it died before"})
    record.running(str(other), None, {})
    entries, _ = measured(tmp_path, [entry_of_all, other], monkeypatch)
    said = "the process died or hung in its first calls or its capture"
    assert entries[str(entry_of_all)]["failed"] == {"peer": "it died before", "fangyan": said}
    assert entries[str(entry_of_all)]["state"] == "done"
    assert entries[str(other)]["reason"] == "its process died or hung while it was timed"


@pytest.mark.slow
def test_run_part_with_a_hanging_implementation(tmp_path, monkeypatch, capsys):
    """It ends itself when its entry's time is over, though Python's own lock is never given back."""
    command = [sys.executable, "-m", "hanging_part", str(tmp_path)]
    monkeypatch.setattr(gpu, "command_of", lambda *_: command)
    start = time.monotonic()
    gpu.run_part("ops", tmp_path, 90.0, dry=True)
    assert time.monotonic() - start < 60
    assert capsys.readouterr().out.count("ops: its process died with 1;") == 1
    log = (tmp_path / "ops.log").read_text(encoding="utf-8")
    assert log.count("Timeout (0:00:0") == 1
    assert "in hang" in log
    first, second = json.loads((tmp_path / "ops.json").read_text(encoding="utf-8"))["entries"].values()
    assert first["failed"] == {"peer": "the process died or hung in its first calls or its capture"}
    for found in (first, second):
        assert found["state"] == "done"
        assert found["implementations"]["fangyan"]["graph"] > 0


def test_run_part_that_hangs_outside_its_entries(tmp_path, monkeypatch, capsys):
    """Outside its entries, where nothing watches it: the run continues with the next part."""
    started = tmp_path / "started"
    code = f"""
import pathlib, subprocess, sys, hanging_part
child = subprocess.Popen([sys.executable, "-c", "import hanging_part; hanging_part.hang()"])
pathlib.Path({str(started)!r}).write_text(str(child.pid))
hanging_part.hang()
"""
    monkeypatch.setattr(gpu, "command_of", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setattr(gpu, "GRACE", 2)
    gpu.run_part("ops", tmp_path, 1.0, dry=True)
    assert "ops: ended after 1 s" in capsys.readouterr().out
    status = Path(f"/proc/{started.read_text(encoding='utf-8')}/status")
    for _ in range(50):
        alive = status.exists() and "(zombie)" not in status.read_text(encoding="utf-8")
        if not alive:
            break
        time.sleep(0.1)
    assert not alive


def test_warm_up_that_hangs(monkeypatch):
    monkeypatch.setattr(warm, "_work", hanging_part.compile_one_and_hang)
    start = time.monotonic()
    found = warm.warm_up(dry=True, seconds=15.0)  # a process starts within it on a busy machine
    assert time.monotonic() - start < 27
    assert found["compiled"] == 1
    assert found["not in time"] == len(warm.tasks(DRY_ENTRIES)) - 1 > 0


def test_measure_after_the_gpu_was_lost(tmp_path, monkeypatch):
    def losing(_trials, _pass_name, _timing_budget, failed):
        failed.update(peer="an illegal memory access", eager="an illegal memory access")
        return {}

    peer = Implementation("peer", "peer", function(square))
    with monkeypatch.context() as patch:
        patch.setattr(ops_part, "interleave", losing)
        patch.setattr(ops_part, "gpu_lost", lambda: True)
        with pytest.raises(RuntimeError, match="lost since peer"):
            measured(tmp_path, [entry(peer)], monkeypatch)
    entries, _ = measured(tmp_path, [entry(peer)], monkeypatch)  # the next process
    found = entries["square/small-T8-float32"]
    assert list(found["failed"]) == ["peer"]
    assert list(found["implementations"]) == ["eager"]


def test_measure_skips_what_does_not_fit(tmp_path, monkeypatch):
    entries, page = measured(tmp_path, [entry()], monkeypatch, seconds=0.5)
    assert entries["square/small-T8-float32"]["state"] == "skipped"
    assert "needs 2 s, 0 s are left" in page
    budget = Budget(100.0)
    budget.took(2.0, 5.0)  # a slower machine than planned
    assert budget.needed(10.0) == pytest.approx(25.0)


def test_planned_seconds_fit_the_parts():
    """Entries times warm-up and rounds, at an H100's nominal peak rates: eight minutes, three per part."""
    planned = [planned_seconds(e, floor(find_op(e.op), e.shape, NOMINAL)[0]) for e in ENTRIES]
    assert sum(planned) + WARM_UP_SECONDS + START_SECONDS <= PARTS["ops"]
    assert sum(step.planned for step in STEPS) <= PARTS["steps"]
    assert max(PARTS.values()) + GRACE <= 180
    assert sum(PARTS[part] + GRACE for part in DEFAULT) <= 480
    assert len(set(map(str, ENTRIES))) == len(ENTRIES)


def test_missing_ops_lack_a_package():
    assert all(reason.startswith("ModuleNotFoundError") for reason in missing_ops().values()), missing_ops()


def test_entries_name_known_implementations():
    pytest.importorskip("bitsandbytes")
    for e in (*ENTRIES, *DRY_ENTRIES):
        assert len(e.implementations(find_op(e.op))) == len(e.names) + len(e.more), str(e)


def test_predictions_name_known_shapes_and_implementations():
    for key, prediction in predictions().items():
        op_name, _, rest = key.partition("/")
        shape, _, implementation = rest.partition(" ")  # ours, where none is named
        if op_name in missing_ops():
            continue
        op = ops()[op_name]
        known = {*map(str, op.shapes), *(str(e.shape) for e in ENTRIES if e.op == op_name)}
        assert shape in known, key
        low, high = prediction["ratio"]
        assert 0 < low <= high, key
        names = {c.name for c in op.implementations}
        assert (implementation or "fangyan") in names, key
        assert prediction["over"] in {"floor", *names}, key
        assert len(prediction["why"]) > 20, key


def test_of_entry_by_implementation(monkeypatch):
    found = {"op/a-T8": 1, "op/a-T8 K step": 2, "op/a-T80": 3}
    monkeypatch.setattr(predictions_module, "predictions", lambda: found)
    assert predictions_module.of_entry("op/a-T8") == {"fangyan": 1, "K step": 2}


def test_compare_missed_by():
    prediction = {"over": "eager", "ratio": [0.5, 0.8], "why": ""}
    assert compare(prediction, 0.6, {"eager": 1.0})["missed_by"] == 1.0
    assert compare(prediction, 1.6, {"eager": 1.0})["missed_by"] == pytest.approx(2.0)
    assert compare(prediction, 0.25, {"eager": 1.0})["missed_by"] == pytest.approx(0.5)
    assert compare(prediction, 1.0, {"floor": 1.0})["measured"] is None


def test_decisions():
    def row(graph, eager=None, role="ours", kernels=()):
        return {"graph": graph, "eager": eager or graph, "role": role, "kernels": list(kernels)}

    tags = "linear_cross_entropy/tags-T65536-H1024-C32-L100-bfloat16"
    kernel = {"name": "tag_spans", "seconds": 180e-6}
    entries = {
        tags: {
            "state": "done",
            "floor": 100e-6,
            "implementations": {
                "fangyan": row(200e-6, 300e-6, kernels=[kernel, {"name": "finish", "seconds": 20e-6}]),
                "fangyan, small_vocab": row(200e-6),
                "fangyan, large_vocab": row(150e-6),
                "Liger": row(100e-6, role="peer"),
            },
        }
    }
    said = "\n".join(decisions("ops", entries))
    assert "eager calls take 1.50x of the graph's time" in said
    assert "2.00 times the floor, goal 1.6: MISSED" in said
    assert "Liger is 2.00x as fast as fangyan" in said
    assert "C=32: large_vocab" in said
    assert "90% of the kernels' time is tag_spans" in said
    k_step = {"frozen linear": row(200e-6), "K step": row(220e-6, role="peer")}
    layer = {"frozen linear": row(200e-6), "fangyan": row(250e-6)}
    entries = {
        f"lora_linear/{name}-T8192-K4096-N4096-R16-P0-bfloat16": {
            "state": "done",
            "floor": 100e-6,
            "implementations": implementations,
        }
        for name, implementations in (("attention", layer), ("k-step", k_step))
    }
    said = "\n".join(decisions("ops", entries))
    assert "1.10 times the frozen linear, where fangyan is 1.25: worth taking up" in said
    assert decisions("values", {"test": {"state": "failed"}})
