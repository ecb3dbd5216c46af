"""Precisions that a machine has not, or not fast."""

import export_rank
import fangyan
import load_rank
import pytest
import torch
from fangyan.training import engine
from fangyan.training.config import EngineConfig
from fangyan.training.engine import slow_precision
from fangyan.training.trainer import Trainer


def test_check_precision_of_bf16_on_a_gpu_without_it(monkeypatch):
    """Before data or a model are loaded; it would be emulated, or a kernel would fail in the first step."""
    recipe = fangyan.load_recipe("cantonese-pos", ["engine.precision=bf16", "data.train=[no-such]"])
    monkeypatch.setattr(engine, "device", lambda: torch.device("cuda", 99))  # its capability is cached
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(
        fangyan.UserError, match=r"engine.precision is bf16, .* of 7.5; expected fp16 or fp32"
    ):
        Trainer(recipe)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("has", ["avx512_bf16", "amx_bf16", "avx512_f"])
@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "cuda"])
def test_slow_precision(monkeypatch, precision, has, on_gpu):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, has: True})
    monkeypatch.setattr(engine, "on_gpu", lambda: on_gpu)
    messages = slow_precision(EngineConfig(precision=precision))
    if (precision, has, on_gpu) == ("bf16", "avx512_f", False):
        assert messages == [
            "engine.precision: bf16 is slower than fp32 on this processor, "
            "which has neither AVX512-BF16 nor AMX"
        ]
    else:
        assert not messages


@pytest.mark.slow
@pytest.mark.ranks
def test_build_engine_shards_from_mapped_files_weight_by_weight(tmp_path, server, free_port):
    """No rank allocates more than its shard and what broadcasting the largest weight takes."""
    model = export_rank.model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    port = free_port()
    processes = [
        server.Process(target=load_rank.measure, args=(rank, 2, port, str(tmp_path))) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    sizes = [parameter.nbytes for parameter in model.parameters()]
    bound = sum(sizes) / 2 + 2 * max(sizes) + 10_000_000
    assert bound < 0.85 * sum(sizes)
    for rank in range(2):
        assert int((tmp_path / str(rank)).read_text(encoding="ascii")) < bound
