"""Checkpoints of some ranks resumed by others: what moves, and real runs that change their ranks."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import create_dynamic_map
from fangyan.errors import UserError
from fangyan.training.reshard import Layout, layouts, move, move_state
from fangyan_kernels.optim8bit.reference import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

SIGNED, UNSIGNED = create_dynamic_map(signed=True), create_dynamic_map(signed=False)


def layout(numels, by_weight, ranks):
    equal_parts = 2 * -(-sum(numels) // (2 * ranks))
    size = sum(-(-numel // ranks) for numel in numels) if by_weight else equal_parts
    return Layout(tuple(numels), by_weight, ranks, size)


def cut(whole, target):
    """Return a vector as each rank has it."""
    parts = []
    for rank in range(target.ranks):
        part = whole.new_zeros(target.size)
        for span in target.spans(rank):
            part[span.offset : span.offset + span.stop - span.start] = whole[span.start : span.stop]
        parts.append(part)
    return parts


@given(
    numels=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    by_weight=st.booleans(),
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
@settings(max_examples=200)
def test_move_keeps_every_element(numels, by_weight, ranks):
    old, new = (layout(numels, by_weight, count) for count in ranks)
    whole = torch.arange(1.0, sum(numels) + 1)
    parts = cut(whole, old)
    assert torch.equal(torch.cat(parts)[torch.cat(parts) > 0].sort().values, whole)
    moved = [move(parts, old, new, rank) for rank in range(new.ranks)]
    assert all(torch.equal(found, expected) for found, expected in zip(moved, cut(whole, new), strict=True))


def states(old, seed=0):
    generator = torch.Generator().manual_seed(seed)
    whole = [torch.randn(old.total, generator=generator), torch.rand(old.total, generator=generator)]
    found = []
    for parts in zip(*(cut(values, old) for values in whole), strict=True):
        codes = [quantize(part, qmap) for part, qmap in zip(parts, (SIGNED, UNSIGNED), strict=True)]
        tensors = {"state1": codes[0][0], "absmax1": codes[0][1], "qmap1": SIGNED}
        tensors |= {"state2": codes[1][0], "absmax2": codes[1][1], "qmap2": UNSIGNED}
        found.append({"step": 7, "__bnb_optimizer_quant_state__": tensors})
    return whole, found


@pytest.mark.parametrize("by_weight", [False, True])
@pytest.mark.parametrize("numels", [(2048, 4096), (1024,)])  # four ranks have as many of 1,024 as a map has
def test_move_state_leaves_codes_in_whole_blocks(by_weight, numels):
    old, new = (layout(numels, by_weight, ranks) for ranks in (4, 2))
    _, before = states(old)
    there = [move_state(before, old, new, rank) for rank in range(new.ranks)]
    back = [move_state(there, new, old, rank) for rank in range(old.ranks)]
    for found, expected in zip(back, before, strict=True):
        assert found["step"] == 7
        for key, tensor in expected["__bnb_optimizer_quant_state__"].items():
            assert torch.equal(found["__bnb_optimizer_quant_state__"][key], tensor), key


@pytest.mark.parametrize("by_weight", [False, True])
def test_move_state_rounds_other_codes_once_more(by_weight):
    old, new = (layout((1000, 37, 3001), by_weight, ranks) for ranks in (2, 3))
    whole, before = states(old)
    after = [move_state(before, old, new, rank)["__bnb_optimizer_quant_state__"] for rank in range(new.ranks)]
    for k, qmap in ((1, SIGNED), (2, UNSIGNED)):
        for part, state in zip(cut(whole[k - 1], new), after, strict=True):
            found = dequantize(state[f"state{k}"], state[f"absmax{k}"], qmap)
            # Neighbouring codes are 0.014 of a block's largest value apart, or 0.007 without a sign.
            assert (found - part).abs().max() <= 0.015 / k * part.abs().max()


def test_move_state_of_32_bits_and_of_ademamixs_two_rows():
    old, new = (layout((300, 7), False, ranks) for ranks in (1, 3))
    rows = torch.stack([torch.arange(1.0, 309), -torch.arange(1.0, 309)])
    rows[:, 307:] = 0.0
    state = [{"step": torch.tensor(3.0), "exp_avg": rows[0], "state1": rows}]
    for rank, expected in enumerate(cut(rows[0][:307], new)):
        found = move_state(state, old, new, rank)
        assert found["step"] == 3
        assert torch.equal(found["exp_avg"], expected)
        assert torch.equal(found["state1"], torch.stack([expected, -expected]))


SHORT = ("train.epochs=1", "train.batch_tokens=400", "train.checkpoint_every=1", "train.keep_checkpoints=9")
SHORT += ("model.hidden_dropout=0.0",)  # whose masks follow the ranks


def losses(cli):
    return [loss for _, loss in cli.losses()]


@pytest.mark.parametrize(
    ("stage", "ranks", "options"),
    [
        (1, (2,), ("optimizer={name: lion8bit, lr: 2e-3, layer_decay: 0.85}", "engine.offload=optimizer")),
        (2, (3,), ("optimizer.name=ademamix8bit",)),
        (3, (2, 4, 1), ("optimizer.name=adamw8bit", "adaptation.freeze_layers=0-1")),
    ],
)
@pytest.mark.slow
@pytest.mark.ranks
def test_train_resumes_on_other_ranks(cli, stage, ranks, options):
    """Each from a checkpoint of the one before: the losses are one rank's, but for a rounding of states."""
    options = (*SHORT, *options, f"engine.zero_stage={stage}")
    cli.train(*options)
    expected = losses(cli)
    before = 1
    for step, count in enumerate(ranks, 1):
        checkpoint = cli.folder / "run/checkpoints" / f"step-{step:06d}"
        _, err = cli.train(*options, ranks=count, resume=checkpoint)
        assert f"is of {before} ranks: its weights and optimizer states were resharded for {count}" in err
        assert losses(cli) == pytest.approx(expected, rel=1e-3)
        assert not list(checkpoint.parent.glob("*.partial"))
        before = count
    assert expected[-1] < expected[0] / 1.1


@pytest.mark.parametrize("sizes", [([100], [40]), ([100, 100], [100]), ([100], [100, 100])])
def test_layouts_of_another_model_are_refused(sizes):
    old, new = sizes
    with pytest.raises(
        UserError, match="run/step-1: its weights are not this model's, expected a checkpoint"
    ):
        layouts([[60, 40]], old, new, False, (1, 2), Path("run/step-1"))
