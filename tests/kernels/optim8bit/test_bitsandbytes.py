"""Steps, states and checkpoints against those of bitsandbytes."""

import copy

import bitsandbytes as bnb
import pytest
import torch
import triton_here
from fangyan_kernels import AdamW8bit, AdEMAMix8bit
from fangyan_kernels.optim8bit import reference
from optim8bit_cases import OURS, gradients, kept_states

if triton_here.INTERPRETED:
    pytest.skip("the interpreter runs Triton's kernels alone", allow_module_level=True)


THEIRS = {
    "adamw": bnb.optim.AdamW8bit,
    "adam": bnb.optim.Adam8bit,
    "lion": bnb.optim.Lion8bit,
    "ademamix": bnb.optim.AdEMAMix8bit,
}


def decoded(state, k):
    codes, scales = state[f"state{k}"], state[f"absmax{k}"]
    if codes.ndim > scales.ndim:
        scales = scales.view(-1)
    parts = codes.view(scales.shape[0], -1) if scales.ndim == 2 else codes.view(1, -1)
    return torch.stack(
        [
            reference.dequantize(part, scale, state[f"qmap{k}"])
            for part, scale in zip(parts, scales.view(len(parts), -1), strict=True)
        ]
    )


@pytest.mark.parametrize("algorithm", OURS)
def test_step_against_bitsandbytes(algorithm):
    """Each step from its own states: the same parameters, and averages stored no worse than there."""
    size, settings = 20_000, {"weight_decay": 0.1}
    start = torch.randn(size, generator=torch.Generator().manual_seed(9))
    theirs, ours = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    bits = THEIRS[algorithm]([theirs], lr=0.01, **settings)
    own = OURS[algorithm]([ours], lr=0.01, **settings)
    for gradient in gradients(size, 30):
        if theirs in bits.state:
            before = {
                key: decoded(bits.state[theirs], k)
                for key, k in (("first", 1), ("second", 2))
                if k in kept_states(algorithm)
            }
            own.state[ours] = copy.deepcopy(bits.state[theirs])
            ours.data.copy_(theirs.data)
        else:
            before = {
                "first": torch.zeros(2 if algorithm == "ademamix" else 1, size),
                "second": torch.zeros(1, size),
            }
        theirs.grad, ours.grad = gradient, gradient
        bits.step()
        own.step()
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-7)
        exact = _averaged(algorithm, before, gradient, bits.param_groups[0]["betas"])
        for k in kept_states(algorithm):
            assert torch.equal(own.state[ours][f"qmap{k}"], bits.state[theirs][f"qmap{k}"])
            torch.testing.assert_close(
                own.state[ours][f"absmax{k}"], bits.state[theirs][f"absmax{k}"], rtol=1e-6, atol=0.0
            )
            error, other = ((decoded(s, k) - exact[k]).abs() for s in (own.state[ours], bits.state[theirs]))
            scale = own.state[ours][f"absmax{k}"].view(len(exact[k]), -1).repeat_interleave(256, 1)[:, :size]
            assert (error <= other + 1e-6 * scale).all()


def _averaged(algorithm, before, gradient, betas):
    beta = betas[1] if algorithm == "lion" else betas[0]
    first = [beta * before["first"][0] + (1 - beta) * gradient]
    if algorithm == "ademamix":
        first.append(betas[2] * before["first"][1] + (1 - betas[2]) * gradient)
    exact = {1: torch.stack(first)}
    if algorithm != "lion":
        exact[2] = betas[1] * before["second"] + (1 - betas[1]) * gradient**2
    return exact


@pytest.mark.parametrize("algorithm", OURS)
def test_checkpoints_of_bitsandbytes_and_ours(algorithm, tmp_path):
    """Through a file, in the middle of a training, from bitsandbytes to here and back: to the same losses."""

    def trained(first, then):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(80, 100), torch.nn.GELU(), torch.nn.Linear(100, 1))
        data = torch.randn(200, 80)
        target = data[:, :1] * data[:, 1:2]
        losses = []
        for number, make in enumerate((first, then)):
            optimizer = make(model.parameters(), lr=1e-3)
            if number:
                optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
            for _ in range(12):
                loss = torch.nn.functional.mse_loss(model(data), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        return torch.tensor(losses), torch.load(tmp_path / "optimizer.pt")

    ways = [
        (THEIRS[algorithm], THEIRS[algorithm]),
        (THEIRS[algorithm], OURS[algorithm]),
        (OURS[algorithm], THEIRS[algorithm]),
        (OURS[algorithm], OURS[algorithm]),
    ]
    (expected, layout), *others = (trained(*way) for way in ways)
    assert expected[-1] < 0.95 * expected[0]
    for losses, checkpoint in others:
        torch.testing.assert_close(losses, expected, rtol=0.03, atol=1e-3)
        assert _layout(checkpoint) == _layout(layout)


def _layout(tree):
    if isinstance(tree, dict):
        return {key: _layout(value) for key, value in tree.items()}
    return (tree.dtype, tree.shape) if isinstance(tree, torch.Tensor) else type(tree)


def test_adamw8bit_32_bit_states(monkeypatch):
    small, told, large = (torch.nn.Parameter(torch.randn(size)) for size in (4095, 5000, 5000))
    manager = bnb.optim.GlobalOptimManager.get_instance()
    # It knows parameters by id() and forgets none, so that a later test's could be taken for this one.
    monkeypatch.setattr(manager, "pid2config", {})
    manager.override_config(told, "optim_bits", 32)
    optimizer = AdamW8bit([small, told, large])
    reference_step = torch.optim.AdamW([told.detach().clone().requires_grad_()], lr=1e-3, weight_decay=1e-2)
    (copied,) = reference_step.param_groups[0]["params"]
    for gradient in gradients(5000, 5):
        small.grad, told.grad, large.grad, copied.grad = gradient[:4095], gradient, gradient, gradient
        optimizer.step()
        reference_step.step()
    kinds = [optimizer.state[p]["state1"].dtype for p in (small, told, large)]
    assert kinds == [torch.float32, torch.float32, torch.uint8]
    torch.testing.assert_close(told.data, copied.data, rtol=1e-6, atol=1e-6)


def test_ademamix8bit_warm_up():
    """In 32 bits, where bitsandbytes is exact."""
    settings = {"t_alpha": 20, "t_beta3": 20, "lr": 0.01, "min_8bit_size": 10_000}
    start, steps = torch.randn(3000), gradients(3000, 10)
    results = []
    for make in (AdEMAMix8bit, bnb.optim.AdEMAMix8bit):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make([parameter], **settings)
        for gradient in steps:
            parameter.grad = gradient
            optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
