"""Whole training steps, optimizer included, against the tutorial loop and the HF Trainer."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fangyan_bench.harness.machine import device
from fangyan_bench.harness.statistics import ratio, slope
from fangyan_bench.harness.stepping import ROOT, StepResult, seconds_to_score
from fangyan_bench.harness.suite import Suite, recorded_time, replay

try:
    from fangyan_bench.steps import largest, lora_lm, masked_lm
    from fangyan_bench.steps.tagger import (
        IMPLEMENTATIONS,
        MINUTES,
        check_agreement,
        load_setup,
        write_bert_base,
    )
except ImportError as error:
    pytest.skip(f"whole steps need the trainer's dependencies: {error}", allow_module_level=True)

RECIPE = str(ROOT / "trainer" / "fangyan" / "recipes" / "cantonese-pos.yaml")
ELECTRA, BERT = "ELECTRA, 5.9 M", "BERT-base, 93 M"
BASELINE, OURS = "tutorial loop", "fangyan"
DEV_SCORE = 85.0  # joint F1
CARD_GIB = 24.0  # GiB, of a card that people have

# What fangyan promises on a CPU; a GPU spends its time elsewhere.
CLAIMS = {"tutorial loop": 8.0, "HF Trainer, batch 16": 1.25}

# And in bf16, of a CPU that has it: against either Trainer, as either may be the faster.
BF16 = "fangyan, bf16"
BF16_CLAIMS = {"fangyan": 1.7, "HF Trainer, equal tokens": 1.5, "HF Trainer, equal tokens, bf16": 1.5}
BF16_GROUP = (*BF16_CLAIMS, BF16)
IN_BF16 = (BF16, "HF Trainer, equal tokens, bf16")


def settings() -> str:
    """The recipe as this machine runs it best."""
    return f"{RECIPE} engine.precision={'bf16' if device() == 'cuda' else 'fp32'}"


def implementations(quick: bool) -> list[str]:
    return [name for name, implementation in IMPLEMENTATIONS.items() if implementation.quick or not quick]


def rounds(suite: Suite, model: str, recipe: str, name: str) -> tuple[dict[str, StepResult], dict[str, str]]:
    """Of a implementation and whom it takes turns with: ten processes of BERT-base do not fit into 24 GB."""
    if name in IN_BF16:
        return suite.steps("tagger", f"{model}, bf16", recipe, list(BF16_GROUP))
    return suite.steps("tagger", model, recipe, [n for n in implementations(suite.quick) if n not in IN_BF16])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    quick = metafunc.config.getoption("quick")
    names = implementations(quick)
    if "model" in metafunc.fixturenames:
        models = [ELECTRA] if quick else [ELECTRA, BERT]
        metafunc.parametrize(("model", "name"), [(model, name) for model in models for name in names])
    if "size" in metafunc.fixturenames:
        cells = [(size, name) for size in masked_lm.SIZES for name in masked_lm.implementations(size)]
        metafunc.parametrize(("size", "name"), [] if quick else cells)
    if "adapted" in metafunc.fixturenames:
        cells = [(size, name) for size in lora_lm.sizes() for name in lora_lm.implementations(size)]
        metafunc.parametrize(("adapted", "name"), [] if quick else cells)
    if "learner" in metafunc.fixturenames:
        metafunc.parametrize("learner", [] if quick else [n for n in names if IMPLEMENTATIONS[n].learns])
    if "stage" in metafunc.fixturenames:
        metafunc.parametrize(("ranks", "stage"), [] if quick else [(n, s) for n in (1, 2) for s in range(4)])


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory, suite: Suite) -> dict[str, str]:
    """By model; before anything is timed, packed and padded steps must agree."""
    setup = load_setup(RECIPE)
    check_agreement(setup)
    folder = tmp_path_factory.mktemp("bert-base")
    if not suite.quick:
        write_bert_base(folder, setup)
    return {ELECTRA: settings(), BERT: f"{settings()} model.path={folder}"}


@pytest.mark.benchmark(timer=recorded_time)
def test_step(model: str, name: str, recipes: dict[str, str], suite: Suite, benchmark: Any) -> None:
    if reason := IMPLEMENTATIONS[name].missing():
        benchmark.skipped = True
        pytest.skip(reason)
    measured = rounds(suite, model, recipes[model], name)
    result, ours = chosen(name, IMPLEMENTATIONS[name].role, OURS, measured, benchmark)
    benchmark.group = f"a tagger's whole step, {model}, seconds a token"
    benchmark.extra_info.update(
        **described(result, measured[0].get(BASELINE), suite),
        task="tagger",
        model=model,
        implementation=name,
        role=IMPLEMENTATIONS[name].role,
        ours=ratio(result.seconds_per_token, ours).as_dict(),
    )
    if name != OURS:
        suite.lines.append(compared(f"{model}: fangyan", result.seconds_per_token, ours, f"the {name}"))
    if name == BF16:
        for other in (other for other in BF16_CLAIMS if other in measured[0]):
            times = measured[0][other].seconds_per_token
            suite.lines.append(compared(f"{model}: {BF16},", times, result.seconds_per_token, f"the {other}"))
    replay(benchmark, result.seconds_per_token)


def chosen(
    name: str,
    role: str,
    ours: str,
    measured: tuple[dict[str, StepResult], dict[str, str]],
    benchmark: Any,
) -> tuple[StepResult, list[float]]:
    """A implementation's result and our own times; a peer that failed is skipped, and said to have."""
    results, failed = measured
    if name in failed and role == "peer":
        benchmark.skipped = True
        pytest.skip(failed[name])
    assert name in results, failed[name]
    assert ours in results, failed[ours]
    return results[name], results[ours].seconds_per_token


def described(result: StepResult, baseline: StepResult | None, suite: Suite) -> dict[str, Any]:
    """What is stored of any whole step."""
    tokens = 1 / statistics.median(result.seconds_per_token)
    # On a CPU of float32, whatever the implementation computes in.
    peak = suite.peak_rates.flops[torch.bfloat16 if device() == "cuda" else torch.float32]
    return {
        "kind": "step",
        "ratio": ratio(baseline.seconds_per_token, result.seconds_per_token).as_dict() if baseline else None,
        "tokens_per_second": tokens,
        "samples_per_second": tokens * result.sentences_per_token,
        "flops_utilisation": tokens * result.flops_per_token / peak,
        "peak_memory": result.peak_memory,
        "first_call_seconds": result.first_call_seconds,
    }


def compared(who: str, other: list[float], own: list[float], whom: str) -> str:
    found = ratio(other, own)
    how = f"{found.median:.2f}x as fast as" if found.clear else "as fast, within the spread, as"
    return f"{who} is {how} {whom}"


@pytest.mark.benchmark(timer=recorded_time)
def test_masked_lm_step(size: str, name: str, agreed: None, suite: Suite, benchmark: Any) -> None:
    """The whole step behind the vocabulary's head: less is gained than of the head alone."""
    names = list(masked_lm.implementations(size))
    measured = suite.steps("masked_lm", f"BERT, {size}", f"{size} {settings()}", names)
    role = masked_lm.implementations(size)[name].role
    result, ours = chosen(name, role, masked_lm.OURS, measured, benchmark)
    benchmark.group = f"a masked language model's whole step, {size}, seconds a token"
    benchmark.extra_info.update(
        **described(result, measured[0].get(masked_lm.BASELINE), suite),
        task="masked language model",
        model=f"BERT, {size}",
        implementation=name,
        role=role,
        ours=ratio(result.seconds_per_token, ours).as_dict(),
    )
    if name == masked_lm.BASELINE:
        other = result.seconds_per_token
        suite.lines.append(compared(f"masked LM, {size}: fangyan's head", other, ours, "the plain model"))
    replay(benchmark, result.seconds_per_token)


@pytest.fixture(scope="session")
def agreed() -> None:
    masked_lm.check_agreement(load_setup(RECIPE))


@pytest.mark.benchmark(timer=recorded_time)
def test_lora_lm_step(adapted: str, name: str, same_adapters: None, suite: Suite, benchmark: Any) -> None:
    """The whole step of a causal model with LoRA."""
    names = list(lora_lm.implementations(adapted))
    measured = suite.steps("lora_lm", f"Qwen3, {adapted}", f"{adapted}|{settings()}", names)
    role = lora_lm.implementations(adapted)[name].role
    result, ours = chosen(name, role, lora_lm.OURS, measured, benchmark)
    benchmark.group = f"a causal model with LoRA, the whole step, {adapted}, seconds a token"
    benchmark.extra_info.update(
        **described(result, measured[0].get(lora_lm.PEFT), suite),
        task="causal LM with LoRA",
        model=f"Qwen3, {adapted}",
        implementation=name,
        role=role,
        ours=ratio(result.seconds_per_token, ours).as_dict(),
    )
    if name == lora_lm.PEFT:
        other = result.seconds_per_token
        suite.lines.append(compared(f"LoRA, {adapted}: fangyan", other, ours, "PEFT"))
    replay(benchmark, result.seconds_per_token)


@pytest.fixture(scope="session")
def same_adapters() -> None:
    lora_lm.check_agreement(load_setup(settings()))


@pytest.mark.skipif(device() != "cuda", reason="a cap on memory is the GPU's allocator's")
@pytest.mark.parametrize("name", [lora_lm.PEFT, lora_lm.OURS])
@pytest.mark.parametrize("base", ["bf16", "nf4"])
def test_largest_model(base: str, name: str, suite: Suite) -> None:
    """The most layers of an 8B model's size whose LoRA trains in the memory of a card; to four layers."""
    if suite.quick:
        pytest.skip("it takes minutes")
    layers = largest.largest(
        lambda layers: largest.trains(name, base, layers, CARD_GIB, settings()), step=4, most=256
    )
    billions = largest.parameters(layers) / 1e9
    suite.lines.append(
        f"{name}, {base}: LoRA of up to {billions:.1f} B parameters trains in {CARD_GIB:.0f} GiB"
    )
    assert layers > 0


@pytest.mark.skipif(device() == "cuda", reason="the ratios are promised of a CPU")
@pytest.mark.parametrize("other", CLAIMS)
def test_step_claim(other: str, recipes: dict[str, str], suite: Suite) -> None:
    results, failed = rounds(suite, ELECTRA, recipes[ELECTRA], OURS)
    holds(OURS, other, CLAIMS[other], results, failed)


@pytest.mark.parametrize("tagger", [ELECTRA, BERT])
@pytest.mark.parametrize("other", BF16_CLAIMS)
def test_bf16_claim(tagger: str, other: str, recipes: dict[str, str], suite: Suite) -> None:
    reason = "it takes minutes" if suite.quick else IMPLEMENTATIONS[BF16].missing()
    if reason:
        pytest.skip(reason)
    results, failed = rounds(suite, tagger, recipes[tagger], BF16)
    holds(BF16, other, BF16_CLAIMS[other], results, failed)


def holds(who: str, other: str, claim: float, results: dict[str, StepResult], failed: dict[str, str]) -> None:
    assert {other, who} <= set(results), failed
    found = ratio(results[other].seconds_per_token, results[who].seconds_per_token)
    assert found.median >= claim, (
        f"{who} is {found.median:.2f}x as fast as the {other} ({found.low:.2f}-{found.high:.2f}), "
        f"expected {claim}x"
    )


@pytest.mark.benchmark(timer=recorded_time)
def test_time_to_score(learner: str, recipes: dict[str, str], suite: Suite, benchmark: Any) -> None:
    """Training time alone until dev joint F1; one run each: learning is not a matter of rounds."""
    seconds = seconds_to_score("tagger", recipes[ELECTRA], learner, DEV_SCORE)
    benchmark.group = f"seconds of training until dev joint F1 {DEV_SCORE}"
    benchmark.extra_info.update(kind="until", implementation=learner, score=DEV_SCORE, seconds=seconds)
    if seconds is None:
        benchmark.skipped = True
        suite.lines.append(f"{learner}: dev joint F1 {DEV_SCORE} not within {MINUTES} minutes of training")
        assert learner != OURS, suite.lines[-1]
        pytest.skip(suite.lines[-1])
    suite.lines.append(f"{learner}: dev joint F1 {DEV_SCORE} after {seconds:.0f} s of training")
    replay(benchmark, [seconds])


@pytest.mark.benchmark(timer=recorded_time)
def test_ranks(
    ranks: int, stage: int, launched: dict[int, dict[str, list[float]]], suite: Suite, benchmark: Any
) -> None:
    if ranks not in launched:
        benchmark.skipped = True
        pytest.skip(f"{ranks} ranks need {ranks} GPUs, found {torch.cuda.device_count()}")
    times = launched[ranks][str(stage)]
    if ranks > 1:
        medians = [statistics.median(launched[n][str(stage)]) for n in (1, ranks)]
        suite.lines.append(
            f"ZeRO {stage}: a token's cost grows as ranks^{slope((1, ranks), medians):.2f}"
            + (", on the same two cores" if device() == "cpu" else "")
        )
    benchmark.group = "fangyan's whole step by ranks and ZeRO stage, seconds a token"
    benchmark.extra_info.update(kind="ranks", ranks=ranks, stage=stage)
    replay(benchmark, times)


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[float]]]:
    """Seconds a token by ranks and stage, from DeepSpeed's own launcher."""
    feasible = [n for n in (1, 2) if device() == "cpu" or n <= torch.cuda.device_count()]
    return {ranks: _launch(ranks, tmp_path_factory.mktemp("ranks") / "times.json") for ranks in feasible}


def _launch(ranks: int, out: Path) -> dict[str, list[float]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "bench")}
    if device() == "cpu":  # the ranks share its cores
        threads = max(1, len(os.sched_getaffinity(0)) // ranks)
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    command += [
        "--master_port",
        str(port),
        "--module",
        "fangyan_bench.steps.ranks",
        *settings().split(),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{ranks} ranks: {done.stderr[-2000:]}")
    times: dict[str, list[float]] = json.loads(out.read_text())["seconds_per_token"]
    return times
