"""What a run says of its time at its end: each piece of advice where it holds, and not beside it."""

import pytest
from fangyan.recipe import load_recipe
from fangyan.training import advice
from fangyan.training.advice import Facts, advise
from fangyan.training.clock import Clock

LORA = ("adaptation.name=lora",)


def found(*overrides, seconds=None, total=1000.0, **measured):
    """What was measured of a run of so many seconds, nine tenths of them steps unless it is said."""
    clock = Clock()
    clock._seconds = {"steps": 0.9 * total, "data": 0.01 * total, "start-up": 0.05 * total} | (seconds or {})
    clock._times = {"checkpoints on the way": 10}
    recipe = load_recipe("cantonese-pos", ["model={path: some/model}", *overrides])
    return Facts(recipe, clock, total, memory=80e9, **measured)


def scarce(**changes):
    return {"peak": 70e9, "states": 20e9} | changes


EVALUATED = {"steps": 500.0, "evaluation": 400.0}
SAVED = {"steps": 700.0, "checkpoint": 250.0, "checkpoints on the way": 200.0}
GPU = {"gpu": True, "batch": 2000.0, "peak": 4e9}

SPEAKS = [
    (
        advice.packing,
        found("train.packing=false", padding=0.41),
        "train.packing=true lays sequences side by side: 41% of the steps is padding now",
    ),
    (advice.precision, found(half="bf16"), "engine.precision=bf16 makes steps faster: this processor"),
    (advice.precision, found(half="fp16", gpu=True), "engine.precision=fp16 makes steps faster: this GPU"),
    (
        advice.states,
        found(**scarce()),
        "optimizer.name=adamw8bit takes 15.0 GB less: the run took 70.0 GB of 80.0 GB",
    ),
    (
        advice.frozen,
        found(*LORA, peak=10e9, frozen=10**9, frozen_bytes=4 * 10**9),
        "adaptation.quantization=nf4 keeps frozen weights of 4.0 GB in 0.5 GB",
    ),
    (
        advice.evaluation,
        found(seconds=EVALUATED, dev=900, others=100),
        "a smaller data.dev saves time: its evaluation took 40% of the run",
    ),
    (
        advice.checkpoints,
        found(seconds=SAVED),
        "train.checkpoint_every=15min writes fewer: 10 checkpoints on the way took 20% of the run",
    ),
    (
        advice.batch_size,
        found("train.batch_tokens=2048", **GPU),
        "train.batch_tokens=8192 gives the GPU more to do, with another optimizer.lr: 2,000 sub-words at a "
        "time take 5% of the GPU's memory",
    ),
    (
        advice.batch_size,
        found("train.gradient_accumulation_steps=4", **GPU),
        "train.gradient_accumulation_steps=1 gives the GPU more to do in the same steps: ",
    ),
]
PROMPTS = "adaptation={name: prompt_tuning}"
SILENT = [
    (advice.packing, found("train.packing=false", padding=0.1)),
    (advice.packing, found(padding=0.41)),  # packed already, as far as the model can
    (advice.packing, found("train.packing=false", PROMPTS, padding=0.41)),
    (advice.precision, found(half=None)),
    (advice.precision, found("engine.precision=bf16", half="bf16")),
    (advice.precision, found(half="bf16", seconds={"steps": 300.0})),
    (advice.precision, found("adaptation={name: adalora}", half="fp16", gpu=True)),
    (advice.states, found(**scarce(peak=40e9))),
    (advice.states, found(**scarce(states=1e9))),
    (advice.states, found("optimizer.name=adamw8bit", **scarce())),
    (advice.states, found("engine.zero_stage=1", "engine.offload=optimizer", **scarce())),
    (advice.frozen, found(*LORA, "adaptation.quantization=nf4", peak=10e9, frozen_bytes=4 * 10**9)),
    (advice.frozen, found(*LORA, peak=10e9, frozen_bytes=10**8)),
    (advice.frozen, found("adaptation={name: ia3}", peak=10e9, frozen_bytes=4 * 10**9)),
    (advice.frozen, found(*LORA, "engine.zero_stage=3", peak=10e9, frozen_bytes=4 * 10**9)),
    (advice.evaluation, found(dev=900, others=100)),
    (advice.evaluation, found(seconds=EVALUATED, dev=100, others=900)),
    (advice.checkpoints, found()),
    (advice.checkpoints, found(seconds=SAVED | {"checkpoints on the way": 9_000.0}, total=45_000.0)),
    (advice.batch_size, found(**GPU | {"gpu": False})),
    (advice.batch_size, found(**GPU | {"batch": 16_000.0})),
    (advice.batch_size, found(**GPU | {"peak": 40e9})),
]


@pytest.mark.parametrize(("rule", "facts", "sentence"), SPEAKS)
def test_advice_where_it_holds(rule, facts, sentence):
    assert rule(facts).startswith(sentence)


@pytest.mark.parametrize(("rule", "facts"), SILENT)
def test_no_advice_where_it_does_not_hold(rule, facts):
    assert rule(facts) is None


def test_every_rule_speaks_and_is_silent():
    assert {rule for rule, *_ in SPEAKS} == {rule for rule, _ in SILENT} == set(advice.RULES)


def test_advised_fields_are_fields():
    """What a sentence begins with is an override that its own recipe takes."""
    for rule, facts, _ in SPEAKS:
        override = rule(facts).partition(" ")[0]
        if "=" in override:
            lora = LORA if override.startswith("adaptation.") else ()
            load_recipe("cantonese-pos", [*lora, override])


def test_advise_says_three_sentences_at_most():
    """Where the time went comes first."""
    facts = found("train.packing=false", padding=0.41, half="bf16", seconds=EVALUATED, dev=1)
    time, *others = advise(facts)
    assert time == (
        "time: 16 min 40 s, of which steps 50%, evaluation 40%, start-up 5%, export and all else 5%; of the "
        "steps, 41% padding"
    )
    assert [sentence.partition("=")[0] for sentence in others] == ["train.packing", "engine.precision"]


def test_advise_says_nothing_of_a_run_that_is_as_fast_as_it_can_be():
    assert advise(found()) == []


def test_advise_says_nothing_of_a_short_run():
    assert advise(found("train.packing=false", total=59.0, padding=0.41)) == []
