"""LoRA linears under autograd, autocast and torch.compile; what they keep, and refuse."""

import pytest
import torch
import triton_here
from fangyan_kernels import lora_linear
from lora_cases import FUSED, SCALING, implementations, make, ours, plain, with_gradients


@implementations(*FUSED)
def test_lora_linear_saves_its_input_alone(impl):
    """What the backward needs is the input and the parameters themselves, and T x R numbers at most."""
    case = make(impl, 64, 16, 24, 2)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ours(*case, impl=impl, dropout=0.5)
    own = {tensor.data_ptr() for tensor in case}
    others = [tensor.shape for tensor in saved if tensor.data_ptr() not in own]
    assert set(others) <= {(), (0,), (64, 2)}


def test_lora_linear_saves_low_on_a_gpu():
    """Without a GPU: what the operator says of CUDA tensors that are not there."""
    from torch._subclasses import FakeTensorMode

    if triton_here.INTERPRETED:
        pytest.skip("the interpreter runs Triton's kernels alone")
    with FakeTensorMode(), torch.no_grad():
        x, w, a, b = (torch.empty(size, device="cuda") for size in ((9, 4), (6, 4), (2, 4), (6, 2)))
        for keep_low, size in ((True, (9, 2)), (False, (0,))):
            outputs, low = torch.ops.fangyan.lora_linear(
                x, [w], [], [a], [b], [1.0], 0.0, None, [], [], "", keep_low
            )
            assert (outputs[0].shape, low.shape, low.device.type) == ((9, 6), size, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="it captures a CUDA graph")
def test_lora_linear_in_a_cuda_graph_of_triton():
    case = [tensor.detach() for tensor in make("triton", 64, 32, 16, 4)]
    with torch.no_grad():
        ours(*case, impl="triton", dropout=0.5)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = ours(*case, impl="triton", dropout=0.5)
    replays = []
    for _ in range(2):
        graph.replay()
        replays.append(output.clone())
    assert not torch.equal(*replays)


@implementations(*FUSED)
def test_lora_linear_passes_opcheck_and_compiles(impl):
    case = make(impl, 40, 16, 24, 2)
    seed = torch.tensor(7, device=case[0].device)
    arguments = ([case[1]], [case[4]], [case[2]], [case[3]], [SCALING], 0.5, seed, [], [], "", False)
    if not triton_here.INTERPRETED:
        torch.library.opcheck(torch.ops.fangyan.lora_linear.default, (case[0], *arguments))
        compiled = torch.compile(
            lambda *values: ours(*values, impl=impl), fullgraph=True, backend="aot_eager"
        )
        for tokens in (40, 41, 300):
            fresh = make(impl, tokens, 16, 24, 2)
            for one, other in zip(
                with_gradients(compiled, fresh), with_gradients(ours, fresh, impl=impl), strict=True
            ):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@implementations(*FUSED)
def test_lora_linear_refuses_a_second_derivative(impl):
    case = make(impl, 10, 4, 4, 2)
    output = ours(*case, impl=impl)
    with pytest.raises(RuntimeError, match="gradient of a gradient"):
        torch.autograd.grad(output.sum(), case[0], create_graph=True)


def test_lora_linear_reference_passes_gradcheck():
    case = [
        tensor.detach().double().requires_grad_(n != 1) for n, tensor in enumerate(make("cpu", 3, 4, 5, 2))
    ]
    assert torch.autograd.gradcheck(lambda *v: ours(*v, impl="reference"), case)


def test_lora_linear_under_autocast():
    if triton_here.INTERPRETED:
        pytest.skip("the interpreter runs Triton's kernels alone")
    case = make("cpu", 50, 16, 24, 2)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(*case)
        expected = plain(*case)
    assert output.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": torch.randn(6, 9)}, r"weight is of shape \(6, 9\), expected \(N, 8\)"),
        ({"weight": torch.randn(6, 8).double()}, "weight is torch.float64, expected input's torch.float32"),
        ({"weight": torch.randn(6, 8, requires_grad=True)}, "weight requires a gradient"),
        ({"lora_A": torch.randn(2, 7)}, r"lora_A is .* expected \(R, 8\) with R from 1 to 256"),
        ({"lora_A": torch.randn(300, 8)}, "R from 1 to 256"),
        ({"lora_B": torch.randn(6, 3)}, r"lora_B is .* expected shape \(6, 2\)"),
        ({"bias": torch.randn(5)}, r"bias is .* of shape \(6,\)"),
        ({"dropout": 1.0}, r"dropout is 1.0, expected a number in \[0, 1\)"),
        ({"impl": "cuda"}, "impl is 'cuda', expected one of auto, reference, cpp, triton"),
        ({"impl": "triton"}, "impl='triton' takes float32, bfloat16 and float16 on cuda"),
        ({"input": torch.zeros(3, 8, dtype=torch.int64)}, "input is torch.int64"),
        ({"weight": [torch.randn(6, 8)] * 2}, "lora_A has 1 entries"),
    ],
)
def test_lora_linear_refuses_bad_arguments(change, sentence):
    good = {
        "input": torch.randn(3, 8),
        "weight": torch.randn(6, 8),
        "lora_A": torch.randn(2, 8),
        "lora_B": torch.randn(6, 2),
    }
    if isinstance(change.get("weight"), list):
        good |= {"lora_A": [good["lora_A"]], "lora_B": [good["lora_B"]]}
    with pytest.raises(ValueError, match=sentence):
        lora_linear(**(good | change))
