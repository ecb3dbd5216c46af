"""Compile Triton kernels for a GPU that is not here: registers, spills, shared memory, instructions.

A GPU regression often shows in these before any clock runs: a spilled register, a dot product that
lost its tensor cores, twice the instructions, loads of 2 bytes where 16 fit, a pipeline one stage deep.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

# Supported: Turing, Ampere, its consumer cards, Ada, Hopper, Blackwell, its consumer cards; MI300. Turing has
# no bfloat16: kernels are compiled there in float16.
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")

# Triton has not used Turing's tensor cores since 3.3 (its pull request 5066): products are multiplications.
WITHOUT_TENSOR_CORES = ("sm_75",)

# Shared memory that one block can have, in bytes (CUDA C Programming Guide, table of technical
# specifications per compute capability; CDNA3 ISA: 64 KiB of LDS per workgroup).
SHARED_LIMIT = {
    "sm_75": 64 << 10,
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
}

# Shared memory, resident blocks and resident warps of one multiprocessor, by the same table.
MULTIPROCESSOR = {
    "sm_75": (64 << 10, 16, 32),
    "sm_80": (164 << 10, 32, 64),
    "sm_86": (100 << 10, 16, 48),
    "sm_89": (100 << 10, 24, 48),
    "sm_90": (228 << 10, 32, 64),
    "sm_100": (228 << 10, 32, 64),
    "sm_120": (100 << 10, 24, 48),
}
_REGISTERS = 65536  # of a multiprocessor, handed out to a warp by 256
_RESERVED_SHARED = 1024  # bytes of each block, since sm_80

# Machine instructions by what they do, first match wins; the rest is "other", LDGDEPBAR among it, a barrier.
_CLASSES = {
    "tensor core": r"HMMA|IMMA|QMMA|OMMA|HGMMA|UTC\w*MMA|v_mfma|v_smfmac",
    "global load": r"(LDG|LDGSTS)(\.|$)|UBLKCP|UTMALDG|buffer_load|global_load",
    "global store": r"STG|UTMASTG|buffer_store|global_store",
    "shared memory": r"LDS|STS|LDSM|STSM|ds_",
    "local memory": r"LDL|STL|scratch_",
    "atomic": r"ATOM|RED\b|global_atomic|buffer_atomic",
    "transcendental": r"MUFU|v_exp|v_log|v_rcp|v_rsq|v_sqrt",
    "float": r"F(ADD|MUL|FMA|MNMX|SETP|SEL|2F)|HADD|HMUL|HFMA|v_\w*_(f16|f32|bf16)",
}


@dataclass(frozen=True)
class OfflineKernel:
    """A ``@triton.jit`` function with everything that its compilation needs.

    Attributes:
        name: of this variant, in reports.
        kernel: the function.
        signature: type of every argument that is no constant, such as ``*bf16`` or ``i32``.
        constants: value of every ``tl.constexpr`` argument.
        multiples: integer arguments that are multiples of 16. As at a launch, the compiler is told so, and
            that pointers are.
        options: ``num_warps``, ``num_stages`` and the like.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    multiples: tuple[str, ...] = ()
    options: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What the compiler made of a kernel for one architecture.

    Attributes:
        registers: per thread.
        spills: bytes of registers spilled to memory, per thread.
        shared: bytes of shared memory, per block.
        instructions: machine instructions by class, and their total.
        programs_per_sm: blocks that one multiprocessor holds at once, by registers, shared memory and
            warps; 0 on AMD.
        loads: instructions that read global memory, by bytes per thread, such as ``{"16": 8}``. Copies from
            global to shared memory are loads. Empty on AMD.
        stages: for each asynchronously filled buffer, its depth and the bytes of one stage, such as
            ``[[3, 8192]]``. Empty without a pipeline.
        stores: instructions that write global memory, likewise.
        loops: for each innermost loop, in the order of the code, its instructions and the bytes that a thread
            loads from and stores to global memory per iteration, such as ``[[161, 32, 0]]``. Empty on AMD.
    """

    registers: int
    spills: int
    shared: int
    instructions: dict[str, int]
    programs_per_sm: int = 0
    loads: dict[str, int] = field(default_factory=dict)
    stages: list[list[int]] = field(default_factory=list)
    stores: dict[str, int] = field(default_factory=dict)
    loops: list[list[int]] = field(default_factory=list)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes per multiprocessor that asynchronous copies can have in flight, if the grid fills it."""
        return self.programs_per_sm * sum(depth * size for depth, size in self.stages)


def compile_offline(kernel: OfflineKernel, architecture: str) -> Report:
    """Compile a kernel for one of :data:`ARCHITECTURES`; needs no GPU."""
    if architecture == "sm_75":
        kernel = in_float16(kernel)
    function = kernel.kernel
    types = {name: kernel.signature.get(name, "constexpr") for name in function.arg_names}
    constants = {(function.arg_names.index(name),): value for name, value in kernel.constants.items()}
    aligned = [name for name, kind in kernel.signature.items() if kind.startswith("*")]
    attributes = {
        (function.arg_names.index(name),): [["tt.divisibility", 16]] for name in (*aligned, *kernel.multiples)
    }
    language = GluonASTSource if function.is_gluon() else ASTSource
    source = language(function, types, constants, attributes)
    compiled = triton.compile(source, target=_target(architecture), options=dict(kernel.options))
    shared = int(compiled.metadata.shared)
    if "amdgcn" in compiled.asm:
        return _read_amd(compiled.asm["amdgcn"], shared)
    refuse_miscompiled(compiled.asm["ptx"])
    report = _read_nvidia(compiled.asm["ptx"], shared)
    return replace(
        report,
        programs_per_sm=_programs_per_sm(architecture, report, int(compiled.metadata.num_warps)),
        stages=_stages(compiled.asm["ttgir"]),
    )


def refuse_miscompiled(ptx: str) -> None:
    """Raise where a compiler's fault is known to be in a kernel's code.

    Triton 3.6 computes twice a program's number, in kernels of one warp with two rows, as a double word
    shifted by 31 where 1 is meant: threads take each other's rows, and no compiler or memory checker says so.

    Raises:
        AssertionError: naming the fault.
    """
    factors = re.findall(r"mul\.wide\.u32\s+%\w+, %\w+, (\d+);", ptx)
    if any(int(factor) >= 1 << 24 for factor in factors):  # no stride is as large
        raise AssertionError(
            "the compiler shifts a thread's number by 31 where 1 is meant: rows are mixed up"
        )


def in_float16(kernel: OfflineKernel) -> OfflineKernel:
    """Return the same kernel with float16 in place of bfloat16."""
    types = {name: "*fp16" if kind == "*bf16" else kind for name, kind in kernel.signature.items()}
    return replace(kernel, signature=types)


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
        source.write_text(ptx, encoding="utf-8")
        said = _run(assembler, "-v", f"--gpu-name={target}", source, "-o", binary)
        # Without its analysis of the data flow, which takes a quarter of the time and adds nothing read here.
        code = _run(tools / "nvdisasm", "-c", "-ndf", binary)
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)
    opcodes = [opcode for opcode in opcodes if opcode != "NOP"]
    stores, loads = (re.search(rf"(\d+) bytes spill {kind}", said) for kind in ("stores", "loads"))
    return Report(
        registers=int(re.search(r"Used (\d+) registers", said)[1]),  # type: ignore[index]
        spills=int(stores[1]) + int(loads[1]) if stores and loads else 0,
        shared=shared,
        instructions=count_by_class(opcodes),
        loads=_widths(opcodes, "LDG|LDGSTS|UTMALDG|UBLKCP"),
        stores=_widths(opcodes, "STG|UTMASTG"),
        loops=_loops(code),
    )


def _loops(code: str) -> list[list[int]]:
    """Find innermost loops: from a label to the branch back to it, with no other such pair between."""
    pattern = r"^(\.L_x_\d+):|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)"
    labels: dict[str, int] = {}
    opcodes: list[str] = []
    found: list[tuple[int, int]] = []
    for label, opcode, operands in re.findall(pattern, code, re.MULTILINE):
        if label:
            labels[label] = len(opcodes)
            continue
        opcodes.append(opcode)
        target = re.search(r"\.L_x_\d+", operands)
        if opcode.startswith("BRA") and target and target[0] in labels:
            found.append((labels[target[0]], len(opcodes)))
    innermost = [(a, b) for a, b in found if not any(a <= c and d < b for c, d in found)]
    return [
        [
            stop - start,
            sum(int(width) * count for width, count in _widths(opcodes[start:stop], "LDG|LDGSTS").items()),
            sum(int(width) * count for width, count in _widths(opcodes[start:stop], "STG").items()),
        ]
        for start, stop in sorted(innermost)
        if stop - start > 1  # a branch to itself ends the code
    ]


def _widths(opcodes: list[str], names: str) -> dict[str, int]:
    """Count accesses to global memory by bytes per thread; bulk copies of a whole tile are "tile"."""
    counts: Counter[str] = Counter()
    for opcode in opcodes:
        if re.match(rf"({names})(\.|$)", opcode):
            bits = re.search(r"\.[US]?(8|16|64|128)(?=\.|$)", opcode)
            counts["tile" if opcode.startswith("U") else str(int(bits[1]) // 8) if bits else "4"] += 1
    return dict(sorted(counts.items()))


def _programs_per_sm(architecture: str, report: Report, warps: int) -> int:
    """Count resident blocks (CUDA C Best Practices Guide, "Calculating Occupancy")."""
    shared, blocks, resident = MULTIPROCESSOR[architecture]
    registers_per_warp = -(-32 * report.registers // 256) * 256
    reserved = 0 if architecture == "sm_75" else _RESERVED_SHARED
    by_registers = _REGISTERS // registers_per_warp // warps
    by_shared = shared // (report.shared + reserved) if report.shared + reserved else blocks
    return min(blocks, resident // warps, by_registers, by_shared)


def _stages(ttgir: str) -> list[list[int]]:
    """Find the buffers that asynchronous copies fill, as (depth, bytes of a stage)."""
    pattern = r"ttg\.local_alloc : \(\) -> !ttg\.memdesc<(\d+)x([\dx]+)x(bf16|f16|f32|i8|i32|i64)"
    sizes = {"bf16": 2, "f16": 2, "f32": 4, "i8": 1, "i32": 4, "i64": 8}
    if "async" not in ttgir:
        return []
    return [
        [int(depth), sizes[kind] * math.prod(map(int, shape.split("x")))]
        for depth, shape, kind in re.findall(pattern, ttgir)
    ]


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
        instructions=count_by_class([opcode for opcode in opcodes if opcode not in ("s_nop", "s_code_end")]),
    )


def count_by_class(opcodes: list[str]) -> dict[str, int]:
    """Count machine instructions by class, and in total."""
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
