"""Record what a call would launch on a GPU: kernels, compiled variants, arguments; nothing is launched.

The driver below stands in for CUDA's. Triton's own code runs up to it: a call's arguments are bound, its
variant is looked up, and compiled for a Hopper card where it is new; allocations, dispatch and autograd are
PyTorch's, on CPU tensors. Values are garbage: other tests answer for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver

from fangyan_kernels import launching
from fangyan_kernels.testing.offline import refuse_miscompiled
from fangyan_kernels.testing.routing import cpu_tensors_to_triton

# No device's number, so that no variant compiled here is taken for a real GPU's; and one for each use below,
# so that it counts its own variants, whatever has been compiled before it.
_DEVICES = count(90)


@dataclass
class Launches:
    """What would have run on a GPU since the last :meth:`clear`, by the kernels' names.

    Attributes:
        launched: kernels in their order.
        variants: compiled variants in their order.
        arguments: of each kernel's last launch, as CUDA's launcher gets them; None where they are not kept.
            A parameter takes over a gradient that nobody else holds, and copies any other.
    """

    launched: list[str] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    arguments: dict[str, tuple[Any, ...]] | None = None

    def clear(self) -> None:
        """Forget what was recorded."""
        self.launched.clear()
        self.variants.clear()
        if self.arguments is not None:
            self.arguments.clear()


class _Driver:
    """Answers what Triton asks of a driver, for an H100; launching records a name."""

    def __init__(self, launches: Launches):
        self._launches = launches
        self._device = next(_DEVICES)
        self.utils = SimpleNamespace(load_binary=self._load, get_device_properties=self._properties)
        self.launcher_cls = self._launcher

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def _properties(self, _device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10, "multiprocessor_count": 132}

    def _load(self, name: str, *_: Any) -> tuple[int, int, int, int, int]:
        self._launches.variants.append(name)
        return 0, 0, 0, 0, 1024

    def _launcher(self, _source: Any, metadata: Any) -> Callable[..., None]:
        launches, name = self._launches, metadata.name
        pointers: list[int] = []  # positions among the arguments

        def launch(*arguments: Any) -> None:
            if not pointers:
                pointers.extend(i for i, each in enumerate(arguments) if isinstance(each, Tensor))
            for i in pointers:
                arguments[i].data_ptr()  # as the real one does for each
            launches.launched.append(name)
            if launches.arguments is not None:
                launches.arguments[name] = arguments

        return launch


@contextlib.contextmanager
def record_launches(keep_arguments: bool = False) -> Iterator[Launches]:
    """Triton kernels are compiled, for sm_90, and not launched; ``impl="triton"`` takes CPU tensors."""
    if knobs.runtime.interpret:
        raise RuntimeError("the interpreter launches and compiles nothing, expected TRITON_INTERPRET unset")
    launches = Launches(arguments={} if keep_arguments else None)
    before = driver._active
    driver.set_active(_Driver(launches))
    try:
        with (
            cpu_tensors_to_triton(),
            patch.dict(launching._compiled, clear=True),
            patch.object(CompiledKernel, "_init_handles", _refusing(CompiledKernel._init_handles)),
        ):
            yield launches
    finally:
        driver._active = before


def _refusing(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_right(kernel: Any) -> None:
        if kernel.module is None:  # each launch asks
            refuse_miscompiled(kernel.asm["ptx"])
        load(kernel)

    return load_right
