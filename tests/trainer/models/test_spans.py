"""Question answering heads: packed rows give transformers' own logits, losses and gradients."""

import pytest
import torch
from fangyan.adaptation.peft_model import without_peft_warnings
from fangyan.data.packing import collate
from fangyan.data.tokenization import TokenizedSequence, with_span
from fangyan.errors import UserError
from fangyan.models.layout import choose_layout
from fangyan.models.self_check import SelfCheck
from fangyan.models.spans import SpanModel
from model_families import BY_NAME, VOCABULARY
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForQuestionAnswering

LENGTHS = (3, 40, 31, 12, 12)
# What a packed batch is on a CPU.
LAYOUTS = {
    "BERT": "varlen",
    "ELECTRA": "varlen",
    "XLM-RoBERTa": "varlen",
    "DistilBERT": "varlen",
    "ALBERT": "varlen",
    "ModernBERT": "varlen",
    "RemBERT": "padded",
    "DeBERTa v3": "padded",
    "MPNet": "padded",
    "ConvBERT": "unpadded",
    "Llama": "varlen",
    "Qwen 3": "varlen",
    "GPT-2": "varlen",
    "Mistral": "varlen",
}


def build(name, **fields):
    config = BY_NAME[name].config()
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in key or "pdrop" in key):
            setattr(config, key, 0.0)
    for key, value in {"num_labels": 2, **fields}.items():
        setattr(config, key, value)
    if config.pad_token_id is None:
        config.pad_token_id = 0
    torch.manual_seed(0)
    return AutoModelForQuestionAnswering.from_config(config, dtype=torch.float32).eval()


def sequences(lengths=LENGTHS, segments=False):
    draw = torch.Generator().manual_seed(1)
    found = []
    for i, length in enumerate(lengths):
        ids = torch.randint(10, VOCABULARY - 10, (length,), generator=draw).tolist()
        kinds = [0] * (length // 2) + [1] * (length - length // 2) if segments else []
        start, end = (0, 0) if i == 1 else (length // 3, length - 1)
        found.append(with_span(TokenizedSequence(ids, [], i, segments=kinds), start, end))
    return found


def plain(model, chosen):
    """Transformers' own logits of each sequence, and summed loss, of one padded batch."""
    pad = model.config.pad_token_id
    width = max(len(s.input_ids) for s in chosen)

    def rows(values, empty):
        return torch.tensor([value + [empty] * (width - len(value)) for value in values])

    inputs = {"input_ids": rows([s.input_ids for s in chosen], pad)}
    inputs["attention_mask"] = rows([[1] * len(s.input_ids) for s in chosen], 0)
    if chosen[0].segments:
        inputs["token_type_ids"] = rows([s.segments for s in chosen], 0)
    outputs = model(**inputs)
    logits = [
        torch.stack([outputs.start_logits[i], outputs.end_logits[i]], -1)[: len(s.input_ids)]
        for i, s in enumerate(chosen)
    ]
    # Its loss of a batch also runs over the padding: of each sequence alone it does not.
    losses = [
        model(
            input_ids=torch.tensor([s.input_ids]),
            start_positions=torch.tensor([int(s.targets[0])]),
            end_positions=torch.tensor([int(s.targets[1])]),
            **({"token_type_ids": torch.tensor([s.segments])} if s.segments else {}),
        ).loss
        for s in chosen
    ]
    return logits, sum(losses)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def adapt(model, config):
    with without_peft_warnings():
        return get_peft_model(model, config).eval()


def check(packed, model, chosen, expected, loss):
    """Compare a batch in the model's layout."""
    batch = collate(chosen, model.config.pad_token_id, packed.row_width)
    for found, right in zip(packed.split_logits(packed.logits(batch), batch), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    found = packed.loss(batch, len(chosen))
    torch.testing.assert_close(found, loss / len(chosen), rtol=1e-5, atol=1e-5)
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_packed_batch_is_transformers_own(name):
    model = build(name)
    chosen = sequences(segments=name == "BERT")
    # ConvBERT's convolutions see the padding: each text alone.
    batches = [[s] for s in chosen] if LAYOUTS[name] == "unpadded" else [chosen]
    parts = [plain(model, part) for part in batches]
    logits = [values.detach() for part in parts for values in part[0]]
    loss = sum(part[1] for part in parts)
    expected = gradients(model, loss / len(chosen))
    packed = SpanModel(model, "padded").eval()
    messages = choose_layout(packed, True, False, 0.0)
    assert packed.layout == LAYOUTS[name]
    assert bool(messages) == (packed.layout != "varlen")
    for layout in {packed.layout, "unpadded"}:
        packed.use_layout(layout)
        for key, gradient in gradients(model, check(packed, model, chosen, logits, loss.detach())).items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("layout", ["rows", "varlen", "padded", "unpadded"])
def test_adapter_keeps_positions_and_segments(layout):
    """PEFT's own class for question answering drops both."""
    model = build("BERT")
    chosen = sequences(segments=True)
    logits, loss = plain(model, chosen)
    adapted = adapt(model, LoraConfig(task_type="QUESTION_ANS", target_modules=["query"]))
    packed = SpanModel(adapted, layout).eval()
    check(packed, model, chosen, logits, loss).backward()
    assert packed.head.weight.grad.abs().sum() > 0


def test_batch_without_sequences_reaches_the_head():
    """A rank without work: the loss is 0, and every weight that others have a gradient of takes part."""
    model = build("BERT")
    packed = SpanModel(model, "rows")
    loss = packed.loss(collate([], 0, packed.row_width))
    assert float(loss.detach()) == 0.0
    found = gradients(model, loss)
    expected = gradients(model, packed.loss(collate(sequences(), 0, packed.row_width)))
    assert found.keys() == expected.keys()
    assert not any(gradient.any() for gradient in found.values())


def test_loss_over_a_whole_row_is_refused():
    """As it would be with a softmax over all that shares a row."""
    packed = SpanModel(build("BERT"), "rows").eval()

    class Leaking(SpanModel):
        def _loss(self, batch, divisor, label_smoothing):
            return super()._loss(batch, divisor, label_smoothing) * 1.01

    packed.__class__ = Leaking
    check = SelfCheck(packed)
    packed.use_layout("rows")
    with pytest.raises(UserError, match="expected .*, the mean cross-entropy of start and end of its logits"):
        check.check_loss()


def test_model_of_other_outputs_is_refused():
    model = build("BERT")

    class Beams(type(model)):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.start_logits = 2 * outputs.start_logits
            return outputs

    model.__class__ = Beams
    with pytest.raises(UserError, match="Beams has other outputs than the start and end logits of one"):
        SpanModel(model, "padded")


def test_head_is_found_whatever_its_name():
    model = build("BERT")

    class Renamed(type(model)):
        @property
        def qa_outputs(self):
            return self.answers

    model.answers = model.qa_outputs
    del model.qa_outputs
    model.__class__ = Renamed
    assert SpanModel(model, "padded").head is model.answers
