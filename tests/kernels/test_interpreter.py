"""The kernels' tests once more in Triton's interpreter, which a process decides on when it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU has run them as they are")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), "-k", "triton", "-q", "-x"]
    command += ["--ignore", __file__, "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout.splitlines()[-1], done.stdout[-500:]
