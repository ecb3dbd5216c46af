"""CPU tensors through the operators to the Triton kernels, where there is no GPU to take them there."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from unittest.mock import patch

import torch

from fangyan_kernels import validation


@contextlib.contextmanager
def cpu_tensors_to_triton() -> Iterator[None]:
    """Let ``impl="triton"`` take CPU tensors, through the operators that CUDA tensors go through.

    The caller decides what launches the kernels: Triton's interpreter, or
    :func:`fangyan_kernels.testing.launches.record_launches`.
    """
    from fangyan_kernels.linear_cross_entropy import launch
    from fangyan_kernels.lora_linear import launch as lora_launch

    implementations = {
        "linear_cross_entropy": launch.linear_cross_entropy,
        "scale_gradients_": launch.scale_gradients_,
        "lora_linear": lora_launch.forward,
        "lora_linear_backward": lora_launch.backward,
    }
    with (
        patch.dict(validation.DEVICES, {"triton": ("cuda", "cpu")}),
        torch.library._scoped_library("fangyan", "IMPL") as library,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the C++ kernels are overridden, on purpose
            for name, implementation in implementations.items():
                library.impl(name, implementation, "CPU", allow_override=True)
        yield
