"""What some models need: windows, tied embeddings, long documents, transposed weights, a text part."""

import random
from functools import partial

import pytest
import torch
from fangyan.errors import UserError
from fangyan.inference.load import merge
from fangyan.models.loading import ModelConfig
from fangyan.models.structure import encoder_layers
from fangyan.tasks.evaluation import run_batches
from model_families import BY_NAME, save
from safetensors import safe_open
from tiny_runs import assert_same, exported, learn, packed_logits, plain_logits, run_of, workload
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForTokenClassification, ByT5Tokenizer, T5Config


def test_windows_do_not_cut_sentences(tmp_path):
    """Of ModernBERT's layers the global ones see 150 sub-words, the local ones 128."""
    family = BY_NAME["ModernBERT"]
    (tmp_path / "base").mkdir()
    draw = random.Random(0)
    words = [[f"w{draw.randint(10, 80)}" for _ in range(150)] for _ in range(2)]
    model = save(family, tmp_path / "base", local_attention=128, num_labels=3)
    data = tmp_path / "data.txt"
    data.write_text("\n".join("".join(f"{w} X\n" for w in sentence) for sentence in words), encoding="utf-8")
    run = run_of(family, tmp_path)
    assert run.max_length == 512
    assert list(run.lengths) == [150, 150]
    seen = reach(model, run.sequences[0])
    assert seen == {"full_attention": 150, "sliding_attention": 129}  # 64 to each side and itself
    run.model.use_layout("unpadded")  # the model's own attention
    alone = plain_logits(run.model.base, run.sequences)
    for layout in ("varlen", "rows"):
        run.model.use_layout(layout)
        assert_same(packed_logits(run.model, run.sequences, run.tokenizer.pad_id)[0], alone)


def reach(model, sequence):
    """How many sub-words move what each kind of layer makes of the middle of a sequence."""
    states = {}

    def keep(kind, layer, inputs, output):
        states[kind] = inputs[0], output[0]

    hooks = [layer.register_forward_hook(partial(keep, layer.attention_type)) for layer in model.model.layers]
    model(input_ids=torch.tensor([sequence.input_ids]))
    for hook in hooks:
        hook.remove()
    gradients = {
        kind: torch.autograd.grad(output.view(-1, output.shape[-1])[75].sum(), hidden, retain_graph=True)[0]
        for kind, (hidden, output) in states.items()
    }
    return {kind: int((gradient[0].abs().sum(-1) > 0).sum()) for kind, gradient in gradients.items()}


def test_a_merged_export_of_tied_embeddings(tmp_path):
    """Reloaded logits are the run's, and the file has one tensor for both."""
    family = BY_NAME["Qwen 3"]
    run = workload(family, tmp_path)
    learn(run)
    found, _ = packed_logits(run.model, run.sequences, run.tokenizer.pad_id)
    merge(exported(run, tmp_path / "model"), tmp_path / "merged")
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert [name for name in file.keys() if "embed_tokens" in name or "lm_head" in name] == [  # noqa: SIM118
            "model.embed_tokens.weight"
        ]
    merged = family.auto_model.from_pretrained(tmp_path / "merged")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert_same(plain_logits(merged, run.sequences), found)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor):
            self.elements = max(self.elements, output.untyped_storage().nbytes() // output.element_size())
        return output


@pytest.mark.parametrize("layout", ["varlen", "rows", "padded"])
def test_a_document_that_is_longer_than_any_batch(tmp_path, layout):
    """Training has steps of batch_tokens, evaluation batches of its own: no mask of the model's 40,960."""
    family = BY_NAME["Qwen 3"]
    save(family, tmp_path / "base", max_position_embeddings=40_960)
    words = "w11 w12 w13 " * (200_000 // 12)
    (tmp_path / "data.txt").write_text(words, encoding="utf-8")
    run = run_of(family, tmp_path, train={"batch_tokens": 256, "epochs": 1})
    assert max(run.lengths) == 256
    assert run.max_length == 4096
    run.model.use_layout(layout)
    sequences = run.task.tokenize(run.splits["dev"], run.tokenizer, run.max_length)[:2]
    assert len(sequences[0].input_ids) == 4096
    with LargestTensor() as largest:
        run.model.loss(run.micro_batch(run.batches[0][0], "0/0")).backward()
        run_batches(run.task, run.model.eval(), sequences, run.tokenizer.pad_id)
    assert largest.elements <= 4096**2


def test_byt5_has_no_fast_tokenizer(tmp_path):
    """Nor has CANINE."""
    ByT5Tokenizer().save_pretrained(tmp_path)
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model.path: .* it has no fast tokenizer, expected a tokenizer.json"):
        ModelConfig(path=str(tmp_path)).load(AutoModelForTokenClassification, 0)


def test_gpt2_is_not_packed_into_4_bits(tmp_path):
    family = BY_NAME["GPT-2"]
    with pytest.raises(
        UserError, match="adaptation.quantization: nf4 packs nn.Linear, found Conv1D in GPT2LMHeadModel"
    ):
        workload(family, tmp_path, adaptation={"name": "lora", "quantization": "nf4"})


def test_a_composite_model_learns_in_its_text_part(tmp_path):
    """Adapters, lengths and layers are the text's; in full fine-tuning the rest stays as it is."""
    family = BY_NAME["Gemma 3"]
    (tmp_path / "lora").mkdir()
    run = workload(family, tmp_path / "lora")
    assert run.max_length == 512
    assert len(encoder_layers(run.model.base, "")) == 2
    adapters = [name for name, _ in run.model.named_parameters() if "lora_" in name]
    assert adapters
    assert all(".language_model.layers." in name for name in adapters)
    (tmp_path / "full").mkdir()
    full = workload(family, tmp_path / "full", adaptation={"name": "full"})
    frozen = {name for name, p in full.model.base.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in full.model.base.named_parameters()
        if name.startswith(("model.vision_tower.", "model.multi_modal_projector."))
    }
