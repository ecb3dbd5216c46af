"""The Triton kernels compiled for GPUs that are not here: what they need is there, and nothing spills."""

from dataclasses import replace

import pytest
import triton_here
from fangyan_kernels.linear_cross_entropy import triton_small_vocab
from fangyan_kernels.testing import cross_entropy_kernels
from fangyan_kernels.testing.cross_entropy_kernels import small_vocab_kernels
from fangyan_kernels.testing.offline import (
    ARCHITECTURES,
    SHARED_LIMIT,
    OfflineKernel,
    compile_offline,
    refuse_miscompiled,
)

if triton_here.INTERPRETED:
    pytest.skip("an interpreter compiles nothing", allow_module_level=True)

PROCESSORS = 132  # multiprocessors of an H100
KERNELS = {kernel.name: kernel for kernel in cross_entropy_kernels.KERNELS}
LARGE = "large-vocab-C21128"
OPTIONS = ("HAS_CLASS_WEIGHT", "HAS_TOKEN_WEIGHT", "HAS_SMOOTHING", "HAS_LOGIT_SCALE", "HAS_SOFTCAP")
OPTIONS += ("PREDICT", "LOSS_T")


TAGS = [(256, 9, 2), (512, 32, 2), (768, 9, 2), (1024, 16, 2), (1024, 32, 2), (1024, 16, 4)]
TAGS += [(1023, 9, 2), (1023, 32, 2), (1023, 16, 4)]  # rows at any address: 2 or 4 bytes per access
ONE_PASS = ("sm_80", "sm_90", "sm_100")  # have the shared memory for it at every size
# Tiles follow from the shared memory: all sizes on a chip with each amount of it, on others the largest.
EVERY_AMOUNT = ("sm_75", "sm_80", "sm_90", "sm_120")
LARGEST = [(1024, 32, 2), (1023, 16, 4)]
TAGS_OF = [(a, shape) for a in ARCHITECTURES for shape in (TAGS if a in EVERY_AMOUNT else LARGEST)]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_large_vocab_kernel_on_every_architecture(architecture):
    report = compile_offline(KERNELS[LARGE], architecture)
    assert report.shared <= SHARED_LIMIT[architecture]
    assert report.spills == report.instructions.get("local memory", 0) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "shape"), TAGS_OF, ids=lambda s: s if isinstance(s, str) else "x".join(map(str, s))
)
def test_small_vocab_kernels_do_not_spill(architecture, shape):
    """Of a hidden size, classes and bytes per element, with every option; in one pass without them too."""
    limit = SHARED_LIMIT[architecture]
    for options in ({}, dict.fromkeys(OPTIONS, True))[architecture not in ONE_PASS :]:
        for kernel in small_vocab_kernels(*shape, limit, options):
            report = compile_offline(kernel, architecture)
            assert report.shared <= limit, kernel.name
            if architecture != "gfx942":  # it builds there, and is not tuned
                assert report.spills == report.instructions.get("local memory", 0) == 0, kernel.name
            if shape[2] == 2 and architecture != "sm_75":  # for which Triton has no tensor-core products
                assert report.instructions["tensor core"] > 0


def test_every_amount_of_shared_memory_has_a_chip_with_all_sizes():
    assert {SHARED_LIMIT[a] for a in EVERY_AMOUNT} == {SHARED_LIMIT[a] for a in ARCHITECTURES}


@pytest.mark.parametrize(("classes", "element_size"), [(2, 2), (9, 2), (20, 2), (32, 2), (2, 4), (9, 4)])
def test_small_vocab_kernels_of_unaligned_rows_are_equal(classes, element_size):
    """What holds above for a hidden size that is no multiple of 16 holds for all."""
    most = 16 if classes <= 16 else 32
    for limit in set(SHARED_LIMIT.values()):
        expected = [
            replace(kernel, name="") for kernel in small_vocab_kernels(1023, most, element_size, limit)
        ]
        for hidden in (100, 300, 770, 1000):
            kernels = small_vocab_kernels(hidden, classes, element_size, limit)
            assert [replace(kernel, name="") for kernel in kernels] == expected


@pytest.mark.parametrize("classes", [7, 16])
@pytest.mark.parametrize("hidden", [768, 1024])
def test_small_vocab_rows_reads_the_input_once(hidden, classes):
    (kernel,) = small_vocab_kernels(hidden, classes, 2, SHARED_LIMIT["sm_90"])
    report = compile_offline(kernel, "sm_90")
    blocks, width = kernel.constants["SPLITS"], hidden
    # Two tiles of 16 tokens: one is used, one under way; targets beside them.
    rows = [[depth, size] for depth, size in report.stages if size > 1024]
    assert rows == [[2, 16 * 2 * width // blocks]] * blocks
    # At 3.0 TB/s and 1 us of latency, an H100's multiprocessor needs 23 KB under way.
    assert 16 * 2 * width >= 23 << 10
    # Of 256 threads, each moves 1/256 of a tile by 16 bytes, once: in the loop, and twice before it.
    assert set(report.loads) <= {"2", "4", "8", "16"}
    assert report.loads["16"] == 3 * 16 * 2 * width // 256 // 16 + 16 * 2 * width // 256 // 16
    assert report.stores["16"] >= 16 * 2 * width // 256 // 16


@pytest.mark.parametrize("classes", [7, 16, 32])
@pytest.mark.parametrize("hidden", [256, 768, 1024, 4096])
def test_choose_grid_bounds_the_workspace(hidden, classes):
    """Of the weight's gradient: 64 KB per multiprocessor; from T = P H / 3 less than 12 bytes per logit."""
    tiles = triton_small_vocab.choose_tiles(hidden, classes, 2, SHARED_LIMIT["sm_90"])
    for tokens in (1, 16, 2048, 8192, PROCESSORS * hidden // 3, 1 << 20):
        grid = triton_small_vocab.choose_grid(tiles, tokens, hidden, PROCESSORS)
        sums = 4 * (grid.workspace(classes, True, False) - grid.workspace(classes, False, False))
        assert 0 < sums <= PROCESSORS * (64 << 10)
        assert tokens < PROCESSORS * hidden // 3 or sums <= 12 * tokens * classes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small-vocab-H1024-C9", "small-vocab-logits-H1024-C32", LARGE])
def test_kernels_with_every_option_compile(name):
    """An interpreter takes what a compiler refuses, such as a variable of two types."""
    kernel = KERNELS[name]
    constants = {key: key in OPTIONS or value for key, value in kernel.constants.items()}
    constants |= {"HAS_DIVISOR": True} | ({"PACKED": False} if name == LARGE else {})
    signature = kernel.signature | {"p_token": "*i64"} if name == LARGE else kernel.signature
    compile_offline(replace(kernel, constants=constants, signature=signature, multiples=()), "sm_80")


@pytest.mark.parametrize("name", ["sum_tokens", "reduce_partials", "scale_gradients"])
def test_reduction_kernels_compile(name):
    from fangyan_kernels.linear_cross_entropy import triton_shared

    function = getattr(triton_shared, name)
    constants = {"REDUCE": True, "HAS_DIVISOR": False, "GRAD_WEIGHT": True, "GRAD_BIAS": True}
    constants |= {"NUM_PARTIALS": triton_shared.NUM_PARTIALS, "BLOCK": 512} | (
        triton_shared.REDUCE if name == "reduce_partials" else {}
    )
    constants = {key: value for key, value in constants.items() if key in function.arg_names}
    integers = {"p_target": "*i64", "p_num_valid": "*i64", "p_num_correct": "*i64", "p_correct": "*i8"}
    arguments = [argument for argument in function.arg_names if argument not in constants]
    signature = {a: integers.get(a, "*fp32" if a.startswith("p_") else "i32") for a in arguments}
    report = compile_offline(OfflineKernel(name, function, signature, constants), "sm_80")
    assert report.spills == 0


def test_refuse_miscompiled():
    """What Triton 3.6 makes of a row's number where a program of one warp has two rows, and what is right."""
    refuse_miscompiled("shl.b32 %r88, %r86, 1;\nmul.wide.u32 %rd35, %r1, 4;")
    with pytest.raises(AssertionError, match="rows are mixed up"):
        refuse_miscompiled("mul.wide.u32 \t%rd35, %r1, 2147483648;\nshl.b64 \t%rd37, %rd36, 33;")
