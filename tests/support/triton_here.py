"""Triton's kernels on this machine: on its GPU, or on the CPU in Triton's interpreter.

``TRITON_INTERPRET=1`` has to be set before Triton is imported, so a process either interprets all
kernels or none.
"""

import contextlib

import numpy as np
import torch
import triton
from fangyan_kernels.testing.routing import cpu_tensors_to_triton
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle, _convert_float

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
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", _indexed(interpreter._patch_lang_tensor))
    monkeypatch.setattr(InterpreterBuilder, "create_dot", _dot(InterpreterBuilder.create_dot))
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", _cast(InterpreterBuilder.cast_impl))
    bounds = _Bounds()
    monkeypatch.setattr(GridExecutor, "__call__", bounds.calling(GridExecutor.__call__))
    for name in ("create_masked_load", "create_masked_store"):
        monkeypatch.setattr(InterpreterBuilder, name, bounds.checking(getattr(InterpreterBuilder, name)))
    with cpu_tensors_to_triton():
        yield


class _Bounds:
    """Raises where a kernel reads or writes outside the tensors that it was given, as a GPU may not."""

    def __init__(self):
        self._ranges = []

    def calling(self, original):
        def call(executor, *arguments, **options):
            storages = [each.untyped_storage() for each in arguments if isinstance(each, torch.Tensor)]
            self._ranges = [(each.data_ptr(), each.data_ptr() + each.nbytes()) for each in storages]
            return original(executor, *arguments, **options)

        return call

    def checking(self, original):
        def access(builder, pointers, *others):
            mask = others[0] if original.__name__ == "create_masked_load" else others[1]
            addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
            size = pointers.get_element_ty().primitive_bitwidth // 8
            inside = np.zeros(addresses.shape, bool)
            for first, end in self._ranges:
                inside |= (addresses >= first) & (addresses + size <= end)
            outside = np.count_nonzero(~inside)
            assert not outside, f"{original.__name__}: {outside} elements are outside all tensors"
            return original(builder, pointers, *others)

        return access


def _indexed(original):
    """Triton 3.6 makes an int of an array of one dimension, which NumPy refuses; 3.7 does as is done here."""

    def patch(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    return patch


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


def _cast(original):
    """Where a GPU rounds to the nearest bfloat16, Triton's interpreter cuts bits off (3.7)."""

    def cast_impl(self, source, kind):
        import triton.language as tl

        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            bits = np.ascontiguousarray(source.data).view(np.uint32)
            # Nothing is left for it to cut off: it makes 1e-38 of what would round to 0.
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            rounded = np.where(np.isfinite(source.data), bits.view(np.float32), source.data)
            source = TensorHandle(rounded, tl.float32)
        return original(self, source, kind)

    return cast_impl
