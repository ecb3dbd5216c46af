"""The C++ extension; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

FLAGS = [
    "-O3",
    "-std=c++20",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",  # vectors are passed between functions that are always inlined
    "-DPy_LIMITED_API=0x030A0000",
    # The stable ABI of torch 2.10: one build serves every later torch.
    "-DTORCH_TARGET_VERSION=0x020A000000000000",
]

setup(
    ext_modules=[
        CppExtension(
            "fangyan_kernels._C",
            [str(path) for path in sorted(Path("csrc").glob("*.cpp"))],
            depends=[str(path) for path in Path("csrc").glob("*.*") if path.suffix != ".cpp"],
            extra_compile_args={"cxx": FLAGS},
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
