"""Triton kernels compiled for a GPU that is not here: registers, spills, shared memory, instructions.

A GPU regression often shows in these before any clock runs: a spilled register, a dot product that
lost its tensor cores, twice the instructions.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from harness.op import OfflineKernel

# What we claim to run on: Ampere, its consumer cards, Ada, Hopper, Blackwell, its consumer cards; MI300.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")

# Shared memory that one block can have, in bytes (CUDA C Programming Guide, table of technical
# specifications per compute capability; CDNA3 ISA: 64 KiB of LDS a workgroup).
SHARED_LIMIT = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
}

# Machine instructions by what they do, first match wins; the rest is "other".
_CLASSES = {
    "tensor core": r"HMMA|IMMA|QMMA|OMMA|HGMMA|UTC\w*MMA|v_mfma|v_smfmac",
    "global load": r"LDG|LDGSTS|UBLKCP|UTMALDG|buffer_load|global_load",
    "global store": r"STG|UTMASTG|buffer_store|global_store",
    "shared memory": r"LDS|STS|LDSM|STSM|ds_",
    "local memory": r"LDL|STL|scratch_",
    "atomic": r"ATOM|RED\b|global_atomic|buffer_atomic",
    "transcendental": r"MUFU|v_exp|v_log|v_rcp|v_rsq|v_sqrt",
    "float": r"F(ADD|MUL|FMA|MNMX|SETP|SEL|2F)|HADD|HMUL|HFMA|v_\w*_(f16|f32|bf16)",
}


@dataclass(frozen=True)
class Report:
    """What the compiler made of a kernel for one architecture.

    Attributes:
        registers: of a thread.
        spills: bytes of registers moved to memory for want of room, a thread.
        shared: bytes of shared memory, a block.
        instructions: machine instructions by class, and their total.
    """

    registers: int
    spills: int
    shared: int
    instructions: dict[str, int]


def compile_offline(kernel: OfflineKernel, architecture: str) -> Report:
    """What the compiler makes of a kernel for one of :data:`ARCHITECTURES`, with no GPU."""
    function = kernel.kernel
    types = {name: kernel.signature.get(name, "constexpr") for name in function.arg_names}
    constants = {(function.arg_names.index(name),): value for name, value in kernel.constants.items()}
    aligned = [name for name, kind in kernel.signature.items() if kind.startswith("*")]
    attributes = {
        (function.arg_names.index(name),): [["tt.divisibility", 16]] for name in (*aligned, *kernel.multiples)
    }
    source = ASTSource(function, types, constants, attributes)
    compiled = triton.compile(source, target=_target(architecture), options=dict(kernel.options))
    shared = int(compiled.metadata.shared)
    if "amdgcn" in compiled.asm:
        return _read_amd(compiled.asm["amdgcn"], shared)
    return _read_nvidia(compiled.asm["ptx"], shared)


def _target(architecture: str) -> GPUTarget:
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


def _read_nvidia(ptx: str, shared: int) -> Report:
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]  # type: ignore[index]
    number = int(re.search(r"\d+", target)[0])  # type: ignore[index]
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    assembler = tools / ("ptxas-blackwell" if number >= 100 else "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        said = _run(assembler, "-v", f"--gpu-name={target}", source, "-o", binary)
        code = _run(tools / "nvdisasm", "-c", binary)
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)
    stores, loads = (re.search(rf"(\d+) bytes spill {kind}", said) for kind in ("stores", "loads"))
    return Report(
        registers=int(re.search(r"Used (\d+) registers", said)[1]),  # type: ignore[index]
        spills=int(stores[1]) + int(loads[1]) if stores and loads else 0,
        shared=shared,
        instructions=_mix([opcode for opcode in opcodes if opcode != "NOP"]),
    )


def _read_amd(assembly: str, shared: int) -> Report:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found[1]) if found else 0

    opcodes = re.findall(r"^\s+([a-z]+_\w+)", assembly, re.MULTILINE)
    return Report(
        registers=field("vgpr_count"),
        # Scalar registers spill into lanes of vector registers, which stay on the chip.
        spills=4 * field("vgpr_spill_count"),
        shared=shared,
        instructions=_mix([opcode for opcode in opcodes if opcode not in ("s_nop", "s_code_end")]),
    )


def _mix(opcodes: list[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for opcode in opcodes:
        kinds = (name for name, pattern in _CLASSES.items() if re.match(pattern, opcode))
        counts[next(kinds, "other")] += 1
    return {"total": len(opcodes), **dict(sorted(counts.items()))}


def _run(*command: Any) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name}: {done.stderr.strip()}")
    return done.stdout + done.stderr
