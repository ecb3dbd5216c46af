"""The vocabulary's way on a GPU: both of its kernels, its chunks, and input rows that no label needs."""

from itertools import pairwise

import pytest
import torch
import triton_here
from cross_entropy_cases import (
    IGNORE,
    OPTIONS,
    check_against_truth,
    implementations,
    make,
    weights,
    with_gradients,
)
from fangyan_kernels import linear_cross_entropy, linear_cross_entropy_with_statistics
from torch.utils._python_dispatch import TorchDispatchMode

vocabulary = implementations("triton_large_vocab")


@pytest.fixture(params=["tile", "row"])
def kernel(request, monkeypatch):
    """The kernel for few classes, or that for many, walking them in blocks of 128 and ends of 64."""
    from fangyan_kernels.linear_cross_entropy import triton_large_vocab

    if request.param == "row":
        monkeypatch.setattr(triton_large_vocab, "MAX_TILE_CLASSES", 0)
        narrow = {"GROUPS": 2, "WIDTH": 64, "num_warps": 1}
        monkeypatch.setattr(triton_large_vocab, "row_options", lambda *_: narrow)
    triton_large_vocab._softmax_options.cache_clear()
    yield
    triton_large_vocab._softmax_options.cache_clear()


@vocabulary
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [77, 300, 1001])
def test_large_vocab_of_any_number_of_classes(impl, dtype, classes):
    check_against_truth(impl, make(impl, 37, 48, classes, dtype=dtype, scale=0.3), reduction="mean")


@vocabulary
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [77, 384])
def test_large_vocab_with_every_option(impl, dtype, classes):
    """384 classes fill a row's padding, and its blocks."""
    case = make(impl, 21, 24, classes, dtype=dtype, scale=0.3)
    check_against_truth(impl, case, reduction="mean", **OPTIONS, **weights(case))


@vocabulary
@pytest.mark.parametrize("classes", [8287, 30522, 50257])
def test_large_vocab_of_real_vocabularies(impl, classes):
    """None of them is a multiple of 8; 3 or 12 blocks each, and what is left."""
    case = make(impl, 3, 8, classes, dtype=torch.bfloat16, ignored=0.0)
    check_against_truth(impl, case, reduction="mean", z_loss=1e-3)


@vocabulary
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("first", [0, 70, 127, 128, 299])
def test_large_vocab_predicts_the_first_of_equal_classes(impl, first):
    """In a lane, in another lane, in the next block, and in what is left of a row."""
    device = triton_here.DEVICE
    weight = torch.ones(300, 4, device=device)
    weight[first:] = 2.0
    input = torch.ones(5, 4, device=device)
    target = torch.tensor([0, first, 299, 130, IGNORE], device=device)
    loss, found = linear_cross_entropy_with_statistics(input, weight, target, predictions=True, impl=impl)
    assert found.predictions.tolist() == [first] * 4 + [IGNORE]
    assert found.num_correct == (target == first).sum()
    _, counts = linear_cross_entropy_with_statistics(input, weight, target, impl=impl)
    assert counts.num_correct == found.num_correct
    assert loss.isfinite()


@vocabulary
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("value", "chunks", "more"),
    [(float("nan"), 1, None), (float("inf"), 1, 2), (-float("inf"), 3, None), (float("nan"), 3, 0)],
)
def test_large_vocab_with_nan_in_ignored_rows(impl, value, chunks, more, monkeypatch):
    from fangyan_kernels.linear_cross_entropy import triton_large_vocab

    input, weight, bias, target = make(impl, 90, 20, 150, ignored=0.4)
    target[0] = IGNORE  # whose row fills up what is packed
    labelled = target != IGNORE
    count = int(labelled.sum())
    monkeypatch.setattr(triton_large_vocab, "chunk_rows", lambda tokens, *_: -(-tokens // chunks))
    dirty = torch.where(labelled[:, None], input.detach(), value).requires_grad_()
    options = {"impl": impl, "max_valid": None if more is None else count + more}
    clean = with_gradients(linear_cross_entropy, input, weight, bias, target, **options)
    found = with_gradients(linear_cross_entropy, dirty, weight, bias, target, **options)
    assert (found[1][~labelled] == 0).all()
    for left, right in zip(found, clean, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


@vocabulary
@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, in the interpreter
def test_large_vocab_with_nan_in_valid_rows(impl):
    """A repair leaves out rows without a label, and no others."""
    input, weight, bias, target = make(impl, 20, 8, 40, ignored=0.0)
    target[3] = IGNORE
    dirty = input.detach().clone()
    dirty[3:5] = float("nan")
    found = with_gradients(linear_cross_entropy, dirty.requires_grad_(), weight, bias, target, impl=impl)
    assert found[0].isnan()
    assert found[1][4].isnan().all()
    assert (found[1][3] == 0).all()
    assert found[2].isnan().all()


class Recorded(TorchDispatchMode):
    """Names and sizes of what PyTorch computes besides our kernels."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.calls.append((function.__name__.split(".")[0], tuple(result.shape)))
        return result


@vocabulary
@pytest.mark.parametrize(("classes", "filled"), [(56, []), (50, ["constant_pad_nd"])])
def test_large_vocab_copies_no_input(impl, classes, filled):
    """In one chunk the three products are all that has the size of input, weight or logits."""
    from fangyan_kernels.linear_cross_entropy import launch

    case = make(impl, 70, 40, classes, dtype=torch.bfloat16)
    input, weight, bias, target = (tensor.detach() for tensor in case)
    options = ("mean", IGNORE, 0.0, 0.0, 1.0, 0.0, 0.0, None, "large_vocab", False, True, True, True)
    with Recorded() as recorded:
        launch.linear_cross_entropy(input, weight, bias, target, None, None, None, *options)
    sizes = [(70, 40), (56, 40), (classes, 40), (70, 56), (70, classes), (70, 64)]
    large = [name for name, shape in recorded.calls if shape in sizes]
    assert large.count("mm") == 3
    copies = {"where", "clone", "copy", "_to_copy", "index_select", "mul", "add", "zeros", "fill_"}
    assert [name for name in large if name in copies | {"constant_pad_nd"}] == filled


@pytest.mark.parametrize("classes", [0, 1, 7, 8, 188, 4096, 4097, 30522, 50257])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_class_blocks_are_aligned(classes, dtype):
    """Extents that are no multiple of 16 bytes would run on kernels of other cards."""
    from fangyan_kernels.linear_cross_entropy import triton_large_vocab

    weight, alignment = torch.randn(classes, 4).to(dtype), 16 // dtype.itemsize
    blocks = triton_large_vocab.class_blocks(weight)
    for block in blocks:
        columns, rows = block.columns, len(block.weight_BH)
        assert columns.stop - columns.start == rows > 0
        assert columns.start % alignment == rows % alignment == 0
        assert columns.stop <= triton_large_vocab.row_stride(classes)
        named = weight[columns]
        assert torch.equal(block.weight_BH[: len(named)], named)
        assert not block.weight_BH[len(named) :].any()
    assert sum(len(block.weight_BH) for block in blocks) == -(-classes // alignment) * alignment
    if classes > triton_large_vocab.MAX_TILE_CLASSES:
        assert blocks[-1].weight_BH.data_ptr() == weight.data_ptr(), "a large weight is copied"


CASES = [
    # tokens, hidden, classes, bytes of a number: rows of a chunk
    (8192, 768, 21128, 2, 8192),
    (8192, 4096, 128256, 2, 8192),  # halves would save 1 GB of logits, and take 2 of a sum
    (16384, 2048, 248320, 2, 4096),
    (65536, 1024, 188, 2, 65536),
    (8192, 4096, 128256, 4, 4096),  # the sum is the result
    (1, 1, 1, 2, 1),
    (0, 64, 5000, 2, 0),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c)))
def test_chunk_rows_of_triton_bounds_memory(case):
    from fangyan_kernels.linear_cross_entropy.triton_large_vocab import CHUNK_BYTES, chunk_rows, row_stride

    tokens, hidden, classes, size, expected = case
    rows = chunk_rows(tokens, hidden, classes, size)
    assert rows == expected

    def beside_results(rows):
        """Bytes of a chunk's logits, and of the sum where it is not the result itself."""
        several = rows < tokens and size < 4
        return rows * row_stride(classes) * size + several * 4 * classes * hidden

    for more_chunks in (2, 3, 10):
        fewer = -(-rows // more_chunks)
        budget = max(CHUNK_BYTES, 2 * 4 * row_stride(classes) * hidden)
        assert beside_results(rows) <= max(beside_results(fewer), budget)


def test_row_stride_of_triton_is_aligned():
    from fangyan_kernels.linear_cross_entropy.triton_large_vocab import row_stride

    strides = [row_stride(classes) for classes in range(1, 300)]
    assert all(stride % 64 == 0 for stride in strides)
    assert all(0 <= stride - classes < 64 for classes, stride in enumerate(strides, 1))
    assert all(a <= b for a, b in pairwise(strides))
