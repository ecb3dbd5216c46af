"""The Triton kernels' tests as a check that all they launch on a GPU compiles, on a machine without one.

    python -m pytest -p compiled_here --assert=plain -k triton tests/kernels

An interpreter runs kernels that the compiler refuses. With this plugin the tests compile every variant for
sm_90 and launch nothing, so values are garbage: assertions are left out of the tests' code, and a test fails
only where a launch raises. Kernel and signature are named.
"""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest
import torch
import triton_here
from fangyan_kernels.testing.launches import record_launches
from torch import Tensor
from triton.runtime.jit import JITFunction

TESTS = str(Path(__file__).parents[1])

_refused: dict[str, str] = {}  # what a launch raised, by kernel and signature
_raised: list[str] = []  # by launches of the test that runs
_ended: list[str] = []  # tests that raised something else, which may have launched less than on a GPU
_variants: list[str] = []

_run, _get_code = JITFunction.run, SourceFileLoader.get_code


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("assertmode") != "plain":
        raise pytest.UsageError("compiled_here leaves assertions out, expected --assert=plain")
    triton_here.MISSING = None
    triton_here.on_the_cpu = _Compiling
    JITFunction.run = _recording_run
    torch.testing.assert_close = torch.library.opcheck = lambda *_, **__: None
    SourceFileLoader.get_code = _code_without_assertions


class _Compiling:
    """In place of the interpreter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._nothing = record_launches()

    def __enter__(self) -> None:
        self._launches = self._nothing.__enter__()

    def __exit__(self, *raised: Any) -> None:
        _variants.extend(self._launches.variants)
        self._nothing.__exit__(*raised)


def _recording_run(self: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return _run(self, *args, **kwargs)
    except Exception as error:
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        kinds = (
            f"{name}: {_kind(value)}" for name, value in values.items() if name not in ("grid", "warmup")
        )
        variant = f"{self.fn.__name__}({', '.join(kinds)})"
        said = [line for line in str(error).splitlines() if line.strip()]
        _refused[variant] = f"{type(error).__name__}: {' '.join(said[-3:])}"
        _raised.append(variant)
        raise


def _kind(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else repr(value)


def _code_without_assertions(self: SourceFileLoader, fullname: str) -> Any:
    """Of the tests' modules; never from or into the cache that other runs read."""
    path = self.get_filename(fullname)
    if path.startswith(TESTS):
        return compile(self.get_data(path), path, "exec", dont_inherit=True, optimize=1)
    return _get_code(self, fullname)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    _raised.clear()
    try:
        yield
    except Exception as error:
        if not _raised:
            _ended.append(f"{pyfuncitem.nodeid}: {type(error).__name__}: {str(error)[:150]!r}")
    if _raised:
        pytest.fail("\n".join(f"{variant}\n  {_refused[variant]}" for variant in _raised), pytrace=False)
    return True


def pytest_terminal_summary(terminalreporter: Any) -> None:
    write = terminalreporter.write_line
    for variant, said in _refused.items():
        write(f"does not compile: {variant}\n  {said}")
    for line in _ended:
        write(f"ended early: {line}")
    write(f"{len(_variants)} variants compiled, {len(_refused)} did not; {len(_ended)} tests ended early")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not _variants and not session.exitstatus:  # nothing was checked
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
