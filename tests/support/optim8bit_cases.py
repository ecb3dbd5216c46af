"""Gradients and steps of the 8-bit optimizers' tests."""

import torch
from fangyan_kernels import Adam8bit, AdamW8bit, AdEMAMix8bit, Lion8bit

KEYS = ("state1", "state2", "absmax1", "absmax2")


OURS = {"adamw": AdamW8bit, "adam": Adam8bit, "lion": Lion8bit, "ademamix": AdEMAMix8bit}


def gradients(size, steps, dtype=torch.float32, seed=0, spread=1.0):
    """As in training: of every size, a block's among themselves."""
    generator = torch.Generator().manual_seed(seed)
    scale = (spread * torch.randn(size, generator=generator)).exp()
    return [(scale * torch.randn(size, generator=generator)).to(dtype) for _ in range(steps)]


def run(make, start, steps, **settings):
    parameter = torch.nn.Parameter(start.clone())
    optimizer = make([parameter], lr=0.01, min_8bit_size=0, **settings)
    for gradient in steps:
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach(), optimizer


def kept_states(algorithm):
    return (1,) if algorithm == "lion" else (1, 2)
