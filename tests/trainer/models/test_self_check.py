"""Layouts that leak, models that differ from themselves, and losses that are not cross-entropy are found."""

import pytest
import torch
from fangyan.errors import UserError
from fangyan.inference.load import ExportedModel
from fangyan.models.layout import choose_layout, keep_layout
from fangyan.models.packed import PackedModel
from fangyan.models.self_check import SelfCheck
from fangyan.tasks.causal_lm.task import CausalLM
from model_families import BY_NAME


def build(name, dtype=torch.float32):
    family = BY_NAME[name]
    torch.manual_seed(0)
    return family.auto_model.from_config(family.config(), dtype=dtype)


def choose(model):
    """The layout that a model gets with packing, and what is said of it."""
    packed = PackedModel(model, "padded")
    messages = choose_layout(packed, packing=True, half=False, attention_dropout=0.0)
    return packed.layout, messages


def mix(model, change):
    """Change what the embeddings hand to the first layer."""
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: change(output))
    return model


def running_mean(x):
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


@pytest.mark.parametrize(
    ("change", "layout"),
    [
        (lambda x: x * 2, "varlen"),
        (lambda x: x + running_mean(x), "padded"),
        (lambda x: x + x.mean(1, keepdim=True), "unpadded"),
    ],
    ids=["no leak", "from the past", "from all of the row"],
)
def test_choose_layout_of_a_model_that_leaks(change, layout):
    found, messages = choose(mix(build("Qwen 3"), change))
    assert found == layout
    assert ["differ by" in message for message in messages] == [True] * (layout != "varlen")


def test_choose_layout_refuses_a_model_that_differs_from_itself():
    model = mix(build("Qwen 3"), lambda x: x + 0.1 * torch.randn_like(x))
    with pytest.raises(UserError, match="of Qwen3ForCausalLM differ by .* from one forward to the next"):
        choose(model)


def test_self_check_refuses_logits_that_are_not_finite():
    model = build("BERT")
    model.classifier.weight.data[0, 0] = torch.nan
    with pytest.raises(
        UserError, match="model.path: the logits of BertForTokenClassification are not finite"
    ):
        SelfCheck(PackedModel(model, "padded"))


class Halved(PackedModel):
    """A loss that is not the cross-entropy of the logits."""

    def loss(self, batch, divisor=1.0, label_smoothing=0.0):
        return super().loss(batch, divisor, label_smoothing) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_loss_refuses_another_loss(dtype):
    SelfCheck(PackedModel(build("Qwen 3", dtype), "padded")).check_loss()
    check = SelfCheck(Halved(build("Qwen 3", dtype), "padded"))
    with pytest.raises(
        UserError, match=r"the loss of Qwen3ForCausalLM is .*, expected .*, the cross-entropy"
    ):
        check.check_loss()


@pytest.mark.parametrize(
    "name", ["BERT", "Qwen 3", "Qwen 3 MoE", "Mixtral", "gpt-oss", "LFM 2", "Jamba", "Qwen 3.5", "ConvBERT"]
)
def test_choose_layout_in_bfloat16_is_that_of_float32(name):
    """A leak smaller than the rounding of 16 bits is found too; a mixture of experts is no leak."""
    assert choose(build(name, torch.bfloat16))[0] == BY_NAME[name].layout


def test_self_check_leaves_generator_and_modes_alone():
    model = build("BERT").train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    choose(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes


def test_keep_layout_of_an_export_that_no_longer_is_right():
    packed = PackedModel(build("LFM 2"), "padded")
    (message,) = keep_layout(packed, "rows")
    assert packed.layout == "padded"
    assert "with padding: the logits of Lfm2ForCausalLM differ" in message
    assert keep_layout(packed, "padded") == []
    exported = ExportedModel(build("LFM 2"), None, CausalLM(), "rows", 512)
    with pytest.warns(UserWarning, match="the logits of Lfm2ForCausalLM differ"):
        assert exported.packed().layout == "padded"
