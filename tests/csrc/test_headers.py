"""The headers of csrc/ can be included together, in any one file."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"


def test_headers_included_together(tmp_path):
    """Twice and in both orders; an -inl.h is included by its header, once per instruction set."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    from torch.utils.cpp_extension import include_paths

    headers = sorted(path.name for path in CSRC.glob("*.h") if not path.stem.endswith("-inl"))
    assert "cpu_dispatch.h" in headers
    source = tmp_path / "all_headers.cpp"
    source.write_text("".join(f'#include "{name}"\n' for name in headers + headers[::-1]), encoding="utf-8")
    folders = [str(CSRC), *include_paths(), sysconfig.get_path("include")]
    command = [
        compiler,
        "-std=c++20",
        "-fsyntax-only",
        "-Wno-psabi",
        "-DTORCH_TARGET_VERSION=0x020A000000000000",
    ]
    done = subprocess.run(
        [*command, *(f"-I{folder}" for folder in folders), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]
