"""Triton's kernels on this machine: on its GPU, or on the CPU in Triton's interpreter.

``TRITON_INTERPRET=1`` has to be set before Triton is imported, so a process either interprets all
kernels or none.
"""

import contextlib
import sys
import warnings
from functools import partial

import torch
import triton
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _convert_float

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MISSING = (
    None
    if INTERPRETED or DEVICE == "cuda"
    else "it needs a CUDA GPU; on the CPU test_interpreter.py runs it in Triton's interpreter"
)


@contextlib.contextmanager
def on_the_cpu(monkeypatch):
    """CPU tensors go through the operator to the Triton kernels, as CUDA tensors do."""
    if not INTERPRETED:
        yield
        return
    from fangyan_kernels import linear_cross_entropy, lora_linear
    from fangyan_kernels.linear_cross_entropy import triton as kernels
    from fangyan_kernels.lora_linear import products, triton_tails

    for function, names in ((linear_cross_entropy, {"triton": "triton_auto"}), (lora_linear, {})):
        _allow_triton(monkeypatch, sys.modules[function.__module__], names)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", _dot(InterpreterBuilder.create_dot))
    with warnings.catch_warnings(), torch.library._scoped_library("fangyan", "IMPL") as library:
        warnings.simplefilter("ignore")  # the C++ kernels are overridden, on purpose
        library.impl("linear_cross_entropy", kernels.linear_cross_entropy, "CPU")
        library.impl("scale_gradients_", kernels.scale_gradients_, "CPU")
        library.impl("lora_linear", partial(products.forward, triton_tails), "CPU")
        library.impl("lora_linear_backward", partial(products.backward, triton_tails), "CPU")
        warnings.simplefilter("error")
        yield


def _allow_triton(monkeypatch, module, names):
    choose = module._choose
    monkeypatch.setattr(
        module,
        "_choose",
        lambda impl, input: names.get(impl, impl) if "triton" in impl else choose(impl, input),
    )


def _dot(original):
    """Triton's interpreter keeps a bfloat16 as its bits, and multiplies those (3.7)."""

    def dot(self, left, right, *others):
        return original(self, _widened(left), _widened(right), *others)

    return dot


def _widened(operand):
    import triton.language as tl

    if operand.dtype.scalar != tl.bfloat16:
        return operand
    return TensorHandle(
        _convert_float(operand.data, tl.bfloat16, tl.float32, None).view("float32"), tl.float32
    )
