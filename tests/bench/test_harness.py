"""The harness must see what is there, and nothing that is not."""

import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from fangyan_bench.harness import memory, timing
from fangyan_bench.harness.check import WrongValues, check, expected
from fangyan_bench.harness.machine import cache_bytes
from fangyan_bench.harness.op import CALL, Cost, Implementation, Op, Shape, compiled, function
from fangyan_bench.harness.stats import median_interval, ratio, slope
from fangyan_bench.harness.suite import Suite
from fangyan_bench.harness.timing import (
    NotCompiled,
    TimingBudget,
    Trial,
    first_call_seconds,
    input_sets,
    interleave,
    reset_compiled,
)
from fangyan_bench.registry import find_op
from fangyan_bench.steps.largest_model import largest_model

SHAPE = Shape("small", {"T": 8, "H": 4})


def inputs(shape, generator):
    return (torch.randn(shape["T"], shape["H"], generator=generator).requires_grad_(),)


def square(x):
    return (x * x).sum()


OP = Op(
    name="square",
    module=__name__,
    shapes=(SHAPE,),
    inputs=inputs,
    reference=square,
    implementations=(Implementation("eager", "baseline", function(square)),),
    cost=lambda _shape, _pass_name: Cost(1.0, 1.0),
)


class Detached(torch.autograd.Function):
    """Right values, and a gradient of zeros: a peer has been timed so."""

    @staticmethod
    def forward(_ctx, x):
        return square(x)

    @staticmethod
    def backward(_ctx, _gradient):
        return torch.zeros(8, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: square(x) * 1.001, "value is off by"),
        (lambda x: square(x).reshape(1), "value has shape (1,), expected ()"),
        (lambda x: square(x.detach()) + 0.9 * square(x) - 0.9 * square(x.detach()), "gradient 0 is off by"),
        (Detached.apply, "gradient 0 is zero"),
    ],
)
def test_check_wrong_values(call, message):
    with pytest.raises(WrongValues) as caught:
        check(Implementation("peer", "peer", function(call)), expected(OP, SHAPE))
    assert message in str(caught.value)
    assert "peer" in str(caught.value)


def test_check_wrong_baseline():
    wrong = replace(
        OP, implementations=(Implementation("eager", "baseline", function(lambda x: 1.1 * square(x))),)
    )
    with pytest.raises(WrongValues, match="eager: value is off by 0.1 of its norm"):
        check(wrong.baseline, expected(wrong, SHAPE))


def test_check_tensor_valued_op():
    op = replace(
        OP,
        reference=lambda x: x * x,
        implementations=(Implementation("eager", "baseline", function(lambda x: x * x)),),
    )
    check(op.baseline, expected(op, SHAPE))


def test_check_right_values():
    other = Implementation("other", "peer", function(lambda x: (x**2).sum()))
    assert all(check(implementation, expected(OP, SHAPE)) < 1e-6 for implementation in (OP.baseline, other))


def test_interleave_takes_turns():
    order = []

    def sleeping(name, seconds):
        def call(x):
            order.append(name)
            time.sleep(seconds)
            return square(x)

        return Implementation(name, "peer", function(call))

    sets = input_sets(OP, SHAPE)
    trials = {name: Trial(OP, SHAPE, sleeping(name, s), sets[:2]) for name, s in (("a", 0.01), ("b", 0.03))}
    times = interleave(trials, "forward", TimingBudget(5, 5, 1.0))
    assert len(times["a"]) == len(times["b"]) == 5
    found = ratio(times["b"], times["a"])
    assert found.clear
    assert 2.0 < found.median < 3.5
    # One implementation's rounds after the other's would be 6 turns, with those of the preparation.
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert len(turns) >= 9


def raising(error):
    def call(_x):
        raise error

    return function(call)


def measured(*others):
    op = replace(OP, implementations=(OP.baseline, *others))
    suite = Suite(quick=True)
    with mock.patch("fangyan_bench.harness.suite.peak_memory", return_value=0):
        return op, suite, suite.op(op, SHAPE)


def test_suite_peer_that_raises():
    late = 0

    def fails_late(x):
        nonlocal late
        late += 1
        if late > 10:
            raise NotImplementedError("cce_exact is\n not implemented")
        return square(x)

    op, suite, found = measured(
        Implementation("broken", "peer", raising(ImportError("no such kernel"))),
        Implementation("late", "peer", function(fails_late)),
        Implementation("ours", "ours", function(square)),
    )
    assert found.failed["broken"] == "ImportError: no such kernel"
    assert found.failed["late"] == "NotImplementedError: cce_exact is not implemented"
    assert set(found.times["forward+backward"]) == {"eager", "ours"}
    assert suite.ratio(op, SHAPE, "forward", "ours").median > 0
    assert suite.ratio_again(op, SHAPE, "forward", "ours") != suite.ratio(op, SHAPE, "forward", "ours")
    assert found.errors["ours"] < 1e-6


def test_suite_out_of_memory():
    short = raising(torch.OutOfMemoryError("CUDA out of memory"))
    _, _, found = measured(Implementation("peer", "peer", short), Implementation("ours", "ours", short))
    assert found.missing == {"peer": "it needs more memory than there is"}
    assert list(found.failed) == ["ours"]


def test_suite_ratio_without_baseline():
    op, suite, found = measured(Implementation("ours", "ours", function(square)))
    del found.times["forward"]["eager"]
    assert suite.ratio(op, SHAPE, "forward", "ours") is None


def test_compiled_compiles_every_shape(monkeypatch):
    """More shapes than a function may have variants; the plain one never takes its place in silence."""
    implementation = Implementation("torch.compile", "baseline", function(compiled(square)), compiled=True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # 25 s less than inductor

    def first_call(implementation, hidden):
        shape = Shape("small", {"T": 8, "H": hidden})
        return first_call_seconds(OP, shape, implementation, input_sets(OP, shape)[0])

    with torch._dynamo.config.patch(recompile_limit=2):
        for hidden in (1, 2, 3):
            reset_compiled()
            first_call(implementation, hidden)
        first_call(implementation, 4)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            first_call(implementation, 5)
    with pytest.raises(NotCompiled, match="its first call at small-T8-H4-float32 compiled nothing"):
        first_call(replace(implementation, prepare=function(square)), 4)
    reset_compiled()


def test_trial_backward_excludes_forward(monkeypatch):
    """By a clock that only the forward moves."""
    seconds = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))

    def call(x):
        seconds[0] += 10.0
        return square(x)

    trial = Trial(
        OP, SHAPE, Implementation("slow forward", "peer", function(call)), input_sets(OP, SHAPE)[:2]
    )
    assert trial.run("backward", 1) == 0.0
    assert trial.run("forward", 1) == 10.0
    assert trial.run("forward+backward", 1) == 10.0


def test_input_sets_exceed_cache():
    shape = Shape("large", {"T": 1 << 20, "H": 4})
    sets = input_sets(OP, shape)
    assert len(sets) == 32 or sum(x.nbytes for (x,) in sets) > cache_bytes("cpu")
    assert not torch.equal(sets[0][0], sets[1][0])


def test_ratio_clear_only_beyond_the_spread():
    rng = np.random.default_rng(0)
    noisy = 1 + 0.1 * rng.standard_normal((2, 40))
    assert not ratio(noisy[0], noisy[1]).clear
    assert ratio(2 * noisy[0], noisy[1]).clear
    assert ratio([2.0] * 5, [1.0] * 5).median == 2.0


def test_median_interval_contains_the_median():
    values = 1 + 0.05 * np.random.default_rng(1).standard_normal(31)
    low, high = median_interval(values, 0.99)
    assert low < np.median(values) < high
    assert high - low < 0.1


def test_slope_of_a_power():
    sizes = [10, 20, 40, 80]
    assert slope(sizes, [size**1.5 for size in sizes]) == pytest.approx(1.5)


@pytest.mark.slow
def test_peak_memory_in_its_own_process():
    op = find_op("adamw")
    shape = replace(op.shapes[0], sizes={"P": 4_000_000})
    measured = memory.peak_memory(op, shape, op.baseline)
    # A copy of the parameters and two states of 4 bytes each; for-each makes temporaries beside them.
    assert 12 * shape["P"] <= measured <= 12 * shape["P"] + 4 * 4 * shape["P"]
    assert op.passes == CALL


@pytest.mark.parametrize("megabytes", [8, 200])
def test_high_water_mark(megabytes):
    before = memory.reset_peak()
    block = torch.ones(megabytes << 18)
    del block
    assert memory.high_water_mark() - before == pytest.approx(megabytes << 20, rel=0.1, abs=2 << 20)


@pytest.mark.parametrize("limit", [0, 3, 4, 5, 57, 60, 255, 256, 1000])
def test_largest_model_at_any_limit(limit):
    tried = []

    def fits(layers):
        tried.append(layers)
        return layers <= limit

    assert largest_model(fits, step=4, most=256) == min(limit // 4 * 4, 256)
    assert len(tried) == len(set(tried)) <= 14  # each is a process of its own
    assert max(tried) <= 256
