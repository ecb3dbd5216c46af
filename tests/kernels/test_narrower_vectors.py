"""The C++ kernels with narrower vectors than this processor's: tests again, in a process told so."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import triton_here

if triton_here.INTERPRETED:
    pytest.skip("the interpreter runs Triton's kernels alone", allow_module_level=True)

HERE = Path(__file__).parent
# The optimizers' have the most code that is the processor's own; of the others a few sizes.
CHOSEN = {
    "optim8bit": "optim8bit",
    "linear_cross_entropy/test_values.py": "linear_cross_entropy and with_every_option and cpp",
    "lora_linear/test_values.py": "lora_linear and with_dropout and cpp",
    "varlen_attention/test_varlen_attention.py": "of_every_head_size",
}


@pytest.mark.slow
@pytest.mark.parametrize("vectors", ["avx2", "default"])
def test_cpp_kernels_with_narrower_vectors(vectors: str) -> None:
    widest = torch.backends.cpu.get_cpu_capability().lower()
    if widest not in {"avx2", "avx512"} or widest == vectors:
        pytest.skip(f"this processor's vectors are no wider than {vectors}")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": vectors}
    chosen = dict(CHOSEN)
    if find_spec("bitsandbytes") is None:
        del chosen["optim8bit"]  # whose tests compare with its optimizers
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v"]
    command += ["-k", " or ".join(f"({which})" for which in chosen.values())]
    command += [str(HERE / file) for file in chosen]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    for file in chosen:
        assert re.search(rf"{file}\S*::.* PASSED", done.stdout), file
