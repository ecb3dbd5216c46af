"""The softmax between a vocabulary's products, compiled for GPUs that are not here: what a logit costs."""

from dataclasses import replace

import pytest
import torch
import triton_here
from fangyan_kernels import linear_cross_entropy
from fangyan_kernels.linear_cross_entropy import triton_large_vocab, triton_softmax, triton_softmax_rows
from fangyan_kernels.testing.cross_entropy_kernels import large_vocab_kernel
from fangyan_kernels.testing.launches import record_launches
from fangyan_kernels.testing.offline import OfflineKernel, compile_offline

if triton_here.INTERPRETED:
    pytest.skip("an interpreter compiles nothing", allow_module_level=True)

# One of each tile: 33 and 188 classes are no multiple of 8, whose rows would be misaligned side by side.
TILES = (33, 188, 512, 1000, 2048, 4096)
OPTIONS = ("HAS_CLASS_WEIGHT", "HAS_TOKEN_WEIGHT", "HAS_DIVISOR", "HAS_SMOOTHING", "HAS_LOGIT_SCALE")
OPTIONS += ("HAS_SOFTCAP", "PREDICT")


def without_options(classes, element_size=2):
    kernel = large_vocab_kernel(classes, element_size)
    return replace(kernel, constants=kernel.constants | {"HAS_BIAS": False})


@pytest.mark.parametrize("element_size", [2, 4])
def test_softmax_row_instructions_per_logit(element_size):
    """Whatever the number of classes: no address depends on it, but for those of targets."""
    report = compile_offline(without_options(21128, element_size), "sm_90")
    tile = triton_softmax_rows.row_options(element_size, softcap=False)
    per_thread = tile["GROUPS"] * tile["WIDTH"] // (32 * tile["num_warps"])
    size = element_size * per_thread
    (first,) = (loop[0] for loop in report.loops if loop[1:] == [size, 0])
    (second,) = (loop[0] for loop in report.loops if loop[1:] == [size, size])
    assert (first + second) / per_thread <= 18
    assert report.programs_per_sm >= 3
    assert report.spills == 0
    logits = {width: count for width, count in report.stores.items() if width == str(element_size)}
    assert logits == ({"2": 1} if element_size == 2 else {"4": 4})  # a target's; with 4 bytes 3 of others
    assert report.loads.get("2", 0) == (1 if element_size == 2 else 0)


@pytest.mark.parametrize("classes", TILES)
def test_softmax_tile_instructions_per_logit(classes):
    """40 instructions per logit take an H100 as long as the 4 bytes that it reads and writes."""
    report = compile_offline(without_options(classes), "sm_90")
    tile = triton_softmax.choose_tile(classes)
    per_thread = tile.rows * tile.block // (32 * tile.warps)
    (check,) = (loop[0] for loop in report.loops if loop[2] == 4)  # the input's rows, where no label is
    assert (report.instructions["total"] - check) / per_thread <= 42
    assert report.programs_per_sm * tile.rows * tile.block * 2 >= 24 << 10  # bytes under way, of 16 needed
    assert report.spills == 0
    assert report.stores["16"] == per_thread // 8
    rows = tile.rows * min(32, tile.block // 8) // (32 * tile.warps) or 1  # of a thread
    assert report.stores["2"] <= rows
    assert report.loads["2"] <= rows


@pytest.mark.slow
@pytest.mark.parametrize("classes", [188, 1000, 4096, 21128])
@pytest.mark.parametrize("architecture", ["sm_75", "sm_86", "sm_120"])
def test_large_vocab_kernel_does_not_spill(classes, architecture):
    report = compile_offline(large_vocab_kernel(classes), architecture)
    assert report.spills == 0
    assert report.instructions.get("local memory", 0) == 0


@pytest.mark.slow
@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize(
    "options", [("HAS_BIAS",), ("HAS_LOGIT_SCALE",), ("HAS_SOFTCAP", "PREDICT"), OPTIONS], ids=str
)
def test_softmax_row_with_options_does_not_spill(options, element_size):
    kernel = large_vocab_kernel(21128, element_size, "HAS_SOFTCAP" in options)
    constants = kernel.constants | dict.fromkeys(options, True)
    for architecture in ("sm_80", "sm_90") if options == OPTIONS else ("sm_90",):
        report = compile_offline(replace(kernel, constants=constants), architecture)
        assert report.spills == report.instructions.get("local memory", 0) == 0
        if element_size == 4:  # 16 KB to 23 KB are needed under way
            assert report.programs_per_sm * constants["GROUPS"] * constants["WIDTH"] * 4 >= 32 << 10


@pytest.mark.parametrize("architecture", ["sm_75", "sm_86", "sm_90"])
def test_repair_grad_weight_does_not_spill(architecture):
    """Turing has no tensor cores that Triton uses: there it is all in registers."""
    kernel = triton_large_vocab.repair_grad_weight
    constants = {"PACKED": True, **triton_large_vocab.REPAIR}
    options = {"num_warps": constants.pop("num_warps")}
    kinds = {"p_repair": "*i32", "p_token": "*i64", "p_target": "*i64"}
    kinds |= dict.fromkeys(("p_gradient", "p_input", "p_grad_weight"), "*bf16")
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names if name not in constants}
    report = compile_offline(
        OfflineKernel("repair", kernel, signature, constants, ("stride", "hidden"), options), architecture
    )
    assert report.spills == 0


@pytest.mark.slow
@pytest.mark.parametrize("classes", [188, 1000])
def test_softmax_tile_with_every_option_compiles(classes):
    kernel = large_vocab_kernel(classes, 4)
    constants = kernel.constants | dict.fromkeys(OPTIONS, True) | {"PACKED": False}
    assert compile_offline(replace(kernel, constants=constants), "sm_90").spills == 0


@pytest.mark.parametrize("classes", [301, 5001])
def test_large_vocab_launches_and_variants(classes):
    """Batches of any number of tokens and labels are served by what the first one compiled."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(size, 64, generator=generator).bfloat16().requires_grad_() for size in (500, classes)
    )
    target = torch.randint(classes, (500,), generator=generator)
    softmax = "softmax_tile" if classes <= triton_softmax.MAX_TILE_CLASSES else "softmax_row"
    with record_launches() as launches:
        for most in (None, 100):
            for step, tokens in enumerate((256, 255, 241, 500, 113)):
                launches.clear()
                labelled = most and most - step
                loss = linear_cross_entropy(
                    x[:tokens], weight, target[:tokens], max_valid=labelled, impl="triton_large_vocab"
                )
                loss.backward()
                ours = [name for name in launches.launched if name in (softmax, "repair_grad_weight")]
                assert ours == [softmax, "repair_grad_weight"]
                assert len(launches.launched) == 6
                assert step == 0 or not launches.variants
