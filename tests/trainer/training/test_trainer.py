"""What the loop says about steps, and about a machine that cannot take them."""

from pathlib import Path

import fangyan
import pytest
import torch
from fangyan import engine
from fangyan.checkpoint import State
from fangyan.engine import start_distributed
from fangyan.loop import _layout, _Losses, _slow_precision, load_material
from fangyan.recipe import parse_recipe
from fangyan.report import Reporter
from fangyan_kernels import capability
from transformers import AutoModelForTokenClassification, BertConfig, DebertaV2Config

RECIPE = Path(__file__).parents[2] / "trainer" / "fangyan" / "recipes" / "cantonese-pos.yaml"


def test_weights_without_a_gradient_are_said(tmp_path):
    """By step, of all ranks together, when losses are read."""
    start_distributed()
    state = State(step=6)
    with Reporter(tmp_path, active=True) as report:
        losses = _Losses(report, state)
        losses.add(torch.tensor(2.0), 1e-3, left=0)
        state.step = 7
        losses.add(torch.tensor(4.0), 1e-3, left=1234)
        assert losses.flush() == 3.0
    log = (tmp_path / "log.txt").read_text()
    assert "step 7: 1,234 weights have no finite gradient and stay as they are" in log
    assert "step 6" not in log


def test_bf16_on_a_gpu_without_it(monkeypatch):
    """Before data or a model are loaded; it would be emulated, or a kernel would fail in the first step."""
    recipe = fangyan.load_recipe(RECIPE, ["engine.precision=bf16", "data.train=[no-such]"])
    monkeypatch.setattr(engine, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(capability, "_capability", lambda device: (7, 5))
    with pytest.raises(fangyan.UserError, match=r"engine.precision is bf16, .* of 7.5; expected fp32"):
        load_material(recipe)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("has", ["avx512_bf16", "amx_bf16", "avx512_f"])
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_where_bf16_is_slow_is_said(monkeypatch, precision, has, where):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, has: True})
    recipe = parse_recipe({"name": "x", "data": {"format": "hkcancor"}, "engine": {"precision": precision}})
    said = _slow_precision(recipe, torch.device(where))
    if (precision, has, where) == ("bf16", "avx512_f", "cpu"):
        assert said == [
            "engine.precision: bf16 is slower than fp32 on this processor, "
            "which has neither AVX512-BF16 nor AMX"
        ]
    else:
        assert not said


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.skipif(engine.device().type != "cpu", reason="a GPU chooses by the precision")
@pytest.mark.parametrize(
    ("config", "dropout", "reason"),
    [
        (BertConfig, 0.0, None),
        (BertConfig, 0.1, "model.attention_dropout is not 0"),
        (
            DebertaV2Config,
            0.0,
            "DebertaV2ForTokenClassification caps its scores, or does not",
        ),
    ],
)
def test_masks_in_place_of_boundaries_are_said(config, dropout, reason):
    model = AutoModelForTokenClassification.from_config(config(vocab_size=50, **SIZES))
    recipe = fangyan.load_recipe(RECIPE, [f"model.attention_dropout={dropout}"])
    layout, notes = _layout(recipe, model)
    assert layout == ("rows" if reason else "varlen")
    assert [reason in note for note in notes] == [True] * bool(reason)
