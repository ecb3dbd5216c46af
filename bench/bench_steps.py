"""Whole training steps, optimizer included, against the tutorial loop and the HF Trainer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fangyan_bench.harness.machine import device
from fangyan_bench.harness.replay import CLOCK
from fangyan_bench.harness.stats import ratio, slope, summarize
from fangyan_bench.harness.steps import (
    QUICK_DATA,
    StepMeasurements,
    StepResult,
    StepSpec,
    seconds_to_score,
)
from fangyan_bench.harness.suite import Suite

try:
    from fangyan_bench.steps import common, largest_model, launch_ranks, lora_lm, masked_lm, recipes, tagger
    from fangyan_bench.trainer_access import RECIPE, load_setup
except ImportError as error:
    pytest.skip(f"whole steps need the trainer's dependencies: {error}", allow_module_level=True)

pytestmark = pytest.mark.benchmark(timer=CLOCK.read, warmup=False, disable_gc=False, cprofile=False)

ELECTRA, BERT = "ELECTRA, 5.9 M", "BERT-base, 93 M"
DEV_SCORE = 85.0  # joint F1
CARD_GIB = 24.0  # memory of a card that people have

# What fangyan promises on a CPU; a GPU spends its time elsewhere.
EXPECTED = {"tutorial loop": 8.0, "HF Trainer, batch 16": 1.25}

# And in bf16, of a CPU that has it: against either Trainer, as either may be the faster.
EXPECTED_BF16 = {
    "fangyan": 1.7,
    "HF Trainer, equal tokens": 1.5,
    "HF Trainer, equal tokens, bf16": 1.5,
}
BF16_GROUP = (*EXPECTED_BF16, tagger.OURS_BF16)
IN_BF16 = (tagger.OURS_BF16, "HF Trainer, equal tokens, bf16")


@dataclass(frozen=True)
class Group:
    """Implementations of one step that take turns, and how their results are named.

    Attributes:
        title: of the task, as tables show it.
        model: of the model, as tables show it.
        tasks: the module that declares the implementations.
        spec: the step.
        names: of the implementations.
        baseline: whose time is divided by the others'.
        ours: the implementation that others are compared with in messages.
        said: of these a message says how much faster ours is.
    """

    title: str
    model: str
    tasks: ModuleType
    spec: StepSpec
    names: tuple[str, ...]
    baseline: str
    ours: str
    said: tuple[str, ...]


def tagger_spec(*overrides: str) -> StepSpec:
    """Return the recipe's step as this machine runs it best."""
    precision = "bf16" if device() == "cuda" else "fp32"
    return StepSpec("tagger", RECIPE, (f"engine.precision={precision}", *overrides))


def _names(quick: bool) -> tuple[str, ...]:
    """Return the tagger's implementations that are timed."""
    return tuple(name for name, each in tagger.IMPLEMENTATIONS.items() if each.quick or not quick)


def _tagger_group(model: str, spec: StepSpec, name: str, quick: bool) -> Group:
    """Return whom an implementation takes turns with: ten processes of BERT-base do not fit into 24 GB."""
    in_bf16 = name in IN_BF16
    names = BF16_GROUP if in_bf16 else tuple(each for each in _names(quick) if each not in IN_BF16)
    said = tuple(each for each in _names(quick) if each != tagger.OURS)
    return Group("tagger", model, tagger, spec, names, tagger.BASELINE, tagger.OURS, said)


def _masked_lm_group(size: str) -> Group:
    spec = replace(tagger_spec(), task="masked_lm", size=size)
    names = tuple(masked_lm.implementations(size))
    title, model, baseline = "masked language model", f"BERT, {size}", masked_lm.BASELINE
    return Group(title, model, masked_lm, spec, names, baseline, masked_lm.OURS, (baseline,))


def _lora_lm_group(size: str) -> Group:
    spec = replace(tagger_spec(), task="lora_lm", size=size)
    names = tuple(lora_lm.implementations(size))
    title, model, baseline = "causal LM with LoRA", f"Qwen3, {size}", lora_lm.BASELINE
    return Group(title, model, lora_lm, spec, names, baseline, lora_lm.OURS, (baseline,))


def _recipe_group(recipe: str) -> Group:
    precision = "bf16" if device() == "cuda" else "fp32"
    spec = StepSpec("recipes", recipe, (f"engine.precision={precision}",), recipe)
    names = tuple(recipes.implementations(recipe))
    said = tuple(name for name in names if name != recipes.OURS)
    return Group(recipe, recipes.MODELS[recipe], recipes, spec, names, recipes.BASELINE, recipes.OURS, said)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test per model and implementation."""
    quick = metafunc.config.getoption("quick")
    if "model" in metafunc.fixturenames:
        models = [ELECTRA] if quick else [ELECTRA, BERT]
        cells = [(model, name) for model in models for name in _names(quick)]
        metafunc.parametrize(("model", "name"), cells)
    if "masked_size" in metafunc.fixturenames:
        cells = [(size, name) for size in masked_lm.SIZES for name in masked_lm.implementations(size)]
        metafunc.parametrize(("masked_size", "name"), [] if quick else cells)
    if "recipe" in metafunc.fixturenames:
        cells = [(recipe, name) for recipe in recipes.MODELS for name in recipes.implementations(recipe)]
        metafunc.parametrize(("recipe", "name"), [] if quick else cells)
    if "lora_size" in metafunc.fixturenames:
        cells = [(size, name) for size in lora_lm.sizes() for name in lora_lm.implementations(size)]
        metafunc.parametrize(("lora_size", "name"), [] if quick else cells)
    if "learner" in metafunc.fixturenames:
        learners = [name for name in _names(quick) if tagger.IMPLEMENTATIONS[name].learns]
        metafunc.parametrize("learner", [] if quick else learners)
    if "stage" in metafunc.fixturenames:
        metafunc.parametrize(("ranks", "stage"), [] if quick else [(n, s) for n in (1, 2) for s in range(4)])


@pytest.fixture(scope="session")
def specs(tmp_path_factory: pytest.TempPathFactory, suite: Suite) -> dict[str, StepSpec]:
    """Return the tagger's steps by model; before anything is timed, packed and padded ones must agree."""
    data = QUICK_DATA if suite.quick else ()
    setup = load_setup(RECIPE, data, common.PADDED_LENGTH)
    tagger.check_agreement(setup)
    folder = tmp_path_factory.mktemp("bert-base")
    if not suite.quick:
        tagger.write_bert_base(folder, setup)
    return {ELECTRA: tagger_spec(*data), BERT: tagger_spec(*data, f"model.path={folder}")}


@pytest.fixture(scope="session")
def heads_agree() -> None:
    """Check the masked language models before they are timed."""
    masked_lm.check_agreement(load_setup(RECIPE, (), common.PADDED_LENGTH))


@pytest.fixture(scope="session")
def recipes_agree() -> set[str]:
    """Return the recipes whose losses were found to be transformers' own, before they are timed."""
    return set()


@pytest.fixture(scope="session")
def adapters_agree() -> None:
    """Check the adapted models before they are timed."""
    masked = tagger_spec()
    lora_lm.check_agreement(load_setup(masked.recipe, masked.overrides, common.PADDED_LENGTH))


def test_tagger_step(
    model: str, name: str, specs: dict[str, StepSpec], suite: Suite, benchmark: BenchmarkFixture
) -> None:
    """Time a tagger's whole step."""
    if reason := tagger.IMPLEMENTATIONS[name].missing():
        pytest.skip(reason)
    group = _tagger_group(model, specs[model], name, suite.quick)
    measured = _record(group, name, suite, benchmark)
    if name == tagger.OURS_BF16:
        own = measured.results[name].seconds_per_token
        for other in (other for other in EXPECTED_BF16 if other in measured.results):
            times = measured.results[other].seconds_per_token
            suite.messages.append(_compared(f"{model}: {name},", times, own, f"the {other}"))


@pytest.mark.usefixtures("heads_agree")
def test_masked_lm_step(masked_size: str, name: str, suite: Suite, benchmark: BenchmarkFixture) -> None:
    """Time the whole step of a masked language model: less is gained than of its head alone."""
    _record(_masked_lm_group(masked_size), name, suite, benchmark)


def test_recipe_step(
    recipe: str, name: str, recipes_agree: set[str], suite: Suite, benchmark: BenchmarkFixture
) -> None:
    """Time the whole step of a recipe's own task."""
    if recipe not in recipes_agree:
        recipes.check_agreement(load_setup(recipe, (), common.PADDED_LENGTH))
        recipes_agree.add(recipe)
    _record(_recipe_group(recipe), name, suite, benchmark)


@pytest.mark.usefixtures("adapters_agree")
def test_lora_lm_step(lora_size: str, name: str, suite: Suite, benchmark: BenchmarkFixture) -> None:
    """Time the whole step of a causal model with LoRA."""
    _record(_lora_lm_group(lora_size), name, suite, benchmark)


def _record(group: Group, name: str, suite: Suite, benchmark: BenchmarkFixture) -> StepMeasurements:
    """Measure a group once, and record one of its implementations; a peer that failed is skipped."""
    measured = suite.steps(group.spec, group.names)
    role = group.tasks.implementations(group.spec.size)[name].role
    if name in measured.failed and role == "peer":
        pytest.skip(measured.failed[name])
    assert name in measured.results, measured.failed[name]
    assert group.ours in measured.results, measured.failed[group.ours]
    result, baseline = measured.results[name], measured.results.get(group.baseline)
    times, ours = result.seconds_per_token, measured.results[group.ours].seconds_per_token
    suite.record(
        benchmark,
        "step",
        times,
        task=group.title,
        model=group.model,
        implementation=name,
        role=role,
        ratio=ratio(baseline.seconds_per_token, times) if baseline else None,
        ours=ratio(times, ours),
        **_rates(result, suite),
    )
    if name in group.said:
        suite.messages.append(_compared(f"{group.model}: {group.ours}", times, ours, f"the {name}"))
    return measured


def _rates(result: StepResult, suite: Suite) -> dict[str, float]:
    """Return a step's throughput, its share of the machine's peak, its memory and its start."""
    tokens = 1 / summarize(result.seconds_per_token).median
    # On a CPU of float32, whatever the implementation computes in.
    peak = suite.peak_rates.flops[torch.bfloat16 if device() == "cuda" else torch.float32]
    return {
        "tokens_per_second": tokens,
        "samples_per_second": tokens * result.sentences_per_token,
        "flops_utilisation": tokens * result.flops_per_token / peak,
        "peak_memory": result.peak_memory,
        "first_call_seconds": result.first_call_seconds,
    }


def _compared(who: str, other: list[float], own: list[float], whom: str) -> str:
    found = ratio(other, own)
    how = f"{found.median:.2f}x as fast as" if found.clear else "as fast, within the spread, as"
    return f"{who} is {how} {whom}"


@pytest.mark.skipif(device() != "cuda", reason="only the GPU's allocator has a limit that can be set")
@pytest.mark.parametrize("name", [lora_lm.BASELINE, lora_lm.OURS])
@pytest.mark.parametrize("base", ["bf16", "nf4"])
def test_largest_model(base: str, name: str, suite: Suite) -> None:
    """Find the most layers of an 8B model's size whose LoRA trains in a card's memory; to four layers."""
    if suite.quick:
        pytest.skip("it takes minutes")
    spec = tagger_spec()

    def fits(layers: int) -> bool:
        return largest_model.fits_in_memory(name, base, layers, CARD_GIB, spec.recipe, spec.overrides)

    layers = largest_model.largest_model(fits, step=4, most=256)
    billions = largest_model.parameters(layers) / 1e9
    suite.messages.append(
        f"{name}, {base}: LoRA of up to {billions:.1f} B parameters trains in {CARD_GIB:.0f} GiB"
    )
    assert layers > 0


@pytest.mark.skipif(device() == "cuda", reason="the ratios are promised of a CPU")
@pytest.mark.parametrize("other", EXPECTED)
def test_expected_step_speedup(other: str, specs: dict[str, StepSpec], suite: Suite) -> None:
    """Assert what fangyan promises against others."""
    if suite.quick and not tagger.IMPLEMENTATIONS[other].quick:
        pytest.skip("it takes a minute")
    group = _tagger_group(ELECTRA, specs[ELECTRA], tagger.OURS, suite.quick)
    _assert_speedup(suite.steps(group.spec, group.names), tagger.OURS, other, EXPECTED[other])


@pytest.mark.parametrize("tagged", [ELECTRA, BERT])
@pytest.mark.parametrize("other", EXPECTED_BF16)
def test_expected_bf16_speedup(tagged: str, other: str, specs: dict[str, StepSpec], suite: Suite) -> None:
    """Assert what fangyan promises in bf16 against others."""
    name = tagger.OURS_BF16
    reason = "it takes minutes" if suite.quick else tagger.IMPLEMENTATIONS[name].missing()
    if reason:
        pytest.skip(reason)
    group = _tagger_group(tagged, specs[tagged], name, suite.quick)
    _assert_speedup(suite.steps(group.spec, group.names), name, other, EXPECTED_BF16[other])


def _assert_speedup(measured: StepMeasurements, who: str, other: str, expected: float) -> None:
    assert {other, who} <= set(measured.results), measured.failed
    found = ratio(measured.results[other].seconds_per_token, measured.results[who].seconds_per_token)
    assert found.median >= expected, (
        f"{who} is {found.median:.2f}x as fast as the {other} ({found.low:.2f}-{found.high:.2f}), "
        f"expected {expected}x"
    )


def test_time_to_score(
    learner: str, specs: dict[str, StepSpec], suite: Suite, benchmark: BenchmarkFixture
) -> None:
    """Measure the seconds of training until a dev score; once, since learning does not vary by rounds."""
    seconds = seconds_to_score(specs[ELECTRA], learner, DEV_SCORE)
    if seconds is None:
        minutes = common.MINUTES
        message = f"{learner}: dev joint F1 {DEV_SCORE} not within {minutes} minutes of training"
        suite.messages.append(message)
        assert learner != tagger.OURS, message
        pytest.skip(message)
    suite.messages.append(f"{learner}: dev joint F1 {DEV_SCORE} after {seconds:.0f} s of training")
    suite.record(benchmark, "time to score", [seconds], implementation=learner, score=DEV_SCORE)


def test_ranks(
    ranks: int,
    stage: int,
    launched: dict[int, dict[str, list[float]]],
    suite: Suite,
    benchmark: BenchmarkFixture,
) -> None:
    """Time fangyan's step by ranks and ZeRO stage, seconds per token."""
    if ranks not in launched:
        pytest.skip(f"{ranks} ranks need {ranks} GPUs, found {torch.cuda.device_count()}")
    if ranks > 1:
        medians = [summarize(launched[n][str(stage)]).median for n in (1, ranks)]
        suite.messages.append(
            f"ZeRO {stage}: a token's cost grows as ranks^{slope((1, ranks), medians):.2f}"
            + (", on the same two cores" if device() == "cpu" else "")
        )
    suite.record(benchmark, "ranks", launched[ranks][str(stage)], ranks=ranks, stage=stage)


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[float]]]:
    """Return the seconds per token by ranks and stage, from DeepSpeed's own launcher."""
    feasible = [n for n in (1, 2) if device() == "cpu" or n <= torch.cuda.device_count()]
    folder = tmp_path_factory.mktemp("ranks")
    return {ranks: launch_ranks.launch(tagger_spec(), ranks, folder / f"{ranks}.json") for ranks in feasible}
