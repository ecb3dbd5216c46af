"""Real runs that go on from a tagger: the same at every ZeRO stage, on two ranks, after an interruption."""

import json
import shutil

import pytest
import torch
from fangyan.data.formats.hkcancor import HKCanCor
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.ranks]

OLD = "{format: hkcancor, tokens: characters, train: [FC-R005_v2], dev: [FC-R009_v]}"
OBJECTIVES = {
    "l2sp": "objective={name: l2sp, strength: 2000.0}",
    "ewc": f"objective={{name: ewc, strength: 2000.0, samples: 40, data: {OLD}}}",
    "distillation": "objective={name: distillation, share: 0.5}",
}
# Another conversation than the first run's; its dev split is scored all the same.
NEW = ("data.train=[FC-R011_v]", "train.epochs=1", "train.batch_tokens=512")


@pytest.fixture(scope="module")
def known(tmp_path_factory, cli_in):
    """A tagger to go on from, and its tag set."""
    cli = cli_in(tmp_path_factory.mktemp("known"))
    tags = {tag for example in HKCanCor().load_named()["train"] for tag in example.fields["tags"]}
    cli.labels = f"task.labels={json.dumps([f'{kind}-{tag}' for tag in sorted(tags) for kind in 'BI'])}"
    cli.train("train.epochs=1", "train.batch_tokens=512", cli.labels)
    return cli


def go_on(known, run, *overrides, **options):
    model = f"model.path={known.folder / 'run/model'}"
    return known.train(*NEW, model, known.labels, *overrides, run=run, **options)


def weights(known, run):
    return load_file(known.folder / run / "model/model.safetensors")


def distance(known, run, head=False):
    """How far the weights of a run have moved."""
    before, after = weights(known, "run"), weights(known, run)
    names = [name for name in before if name.startswith("classifier") == head]
    return float(sum(((after[name] - before[name]) ** 2).sum() for name in names)) ** 0.5


@pytest.fixture(scope="module")
def one_rank(known):
    """Runs of each objective on one rank at stage 0, as they are asked for."""
    done = set()

    def run(name):
        if name not in done:
            go_on(known, f"one-{name}", OBJECTIVES[name], "train.gradient_accumulation_steps=2")
            done.add(name)
        return f"one-{name}"

    return run


@pytest.mark.parametrize(("name", "stage"), [("l2sp", 1), ("ewc", 3), ("distillation", 2)])
def test_two_ranks_are_one_rank(known, one_rank, name, stage):
    expected, run = one_rank(name), f"two-{name}-{stage}"
    go_on(known, run, OBJECTIVES[name], f"engine.zero_stage={stage}", ranks=2)
    left, right = known.losses(run), known.losses(expected)
    assert [loss for _, loss in left] == pytest.approx([loss for _, loss in right], rel=1e-5)
    found, wanted = weights(known, run), weights(known, expected)
    for key, weight in found.items():
        torch.testing.assert_close(weight, wanted[key], rtol=1e-3, atol=2e-5, msg=key)


def test_weights_are_held(known, one_rank):
    go_on(known, "plain", "train.gradient_accumulation_steps=2")
    go_on(known, "ewc", OBJECTIVES["ewc"].replace("2000.0", "1.0e8"))
    plain = distance(known, "plain")
    assert distance(known, one_rank("l2sp")) < 0.8 * plain
    # But for weights that do not matter for the data that is kept, such as those of its unknown characters.
    assert distance(known, "ewc") < 0.5 * plain
    assert distance(known, one_rank("distillation")) > 0.8 * plain


@pytest.mark.parametrize(
    "overrides",
    [
        ("engine.precision=bf16",),
        ("engine.precision=bf16", "optimizer.name=adamw8bit"),
        ("engine.zero_stage=2", "engine.offload=optimizer", "engine.precision=bf16"),
    ],
    ids=["bf16", "bf16 8bit", "offload"],
)
def test_weights_are_held_whatever_steps_them(known, overrides):
    """At a strength that leaves no more than the last step of each weight."""
    run = "-".join(part.rpartition("=")[2] for part in overrides)
    go_on(known, run, *overrides, "objective={name: l2sp, strength: 1.0e8}")
    go_on(known, f"free-{run}", *overrides)
    assert distance(known, run) < 0.4 * distance(known, f"free-{run}")


@pytest.mark.parametrize("name", ["ewc", "distillation"])
def test_resume_is_exact(known, one_rank, name):
    """With what was estimated before the first step, and where that is lost, too."""
    whole = one_rank(name)
    for run in ("again", "lost"):
        copy = known.folder / run
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(known.folder / whole, copy, symlinks=True)
        last = (copy / "checkpoints/last").resolve()
        shutil.rmtree(last)
        (kept,) = (copy / "objective").iterdir()
        if run == "lost":
            kept.write_bytes(kept.read_bytes()[:-1])
        before = kept.read_bytes()
        arguments = (OBJECTIVES[name], "train.gradient_accumulation_steps=2")
        _, err = go_on(known, run, *arguments, resume="auto")
        assert "resuming" in err
        assert known.losses(run) == known.losses(whole)
        assert (kept.read_bytes() == before) == (run == "again")


def test_a_head_that_knows_nothing_is_refused(known):
    for name in ("ewc", "distillation"):
        _, err = known.train(OBJECTIVES[name], run="refused", code=2)
        assert "the model's head is new" in err
        assert "Traceback" not in err


def test_an_adapter_is_held(known):
    """What is pulled to where it began is the adapter, and its head."""
    lora = "adaptation={name: lora, rank: 4, alpha: 8}"
    held = OBJECTIVES["ewc"].replace("2000.0", "1.0e6")
    go_on(known, "lora-ewc", lora, held, "engine.zero_stage=3")
    go_on(known, "lora-free", lora)
    sizes = []
    for run in ("lora-ewc", "lora-free"):
        adapter = load_file(known.folder / run / "model/adapter_model.safetensors")
        sizes.append(sum(float(w.square().sum()) for name, w in adapter.items() if "lora_B" in name))
    assert 0.0 < sizes[0] < 0.5 * sizes[1]
