"""Labels drawn from a model's distribution: at the right places, as often as they should be."""

import copy

import numpy as np
import pytest
import torch
from adapted_models import SMALL
from fangyan.data.packing import collate
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence
from fangyan.distributed.process_group import start_distributed
from fangyan.models.packed import PackedModel
from fangyan.objectives.sampling import SampledLabels, load_labels, sample_labels
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    BertConfig,
    Qwen2Config,
)

CONFIGS = {
    "bert": (AutoModelForTokenClassification, BertConfig(**SMALL, num_labels=5), 5),
    "qwen2": (
        AutoModelForCausalLM,
        Qwen2Config(num_key_value_heads=2, use_sliding_window=False, **SMALL),
        64,
    ),
}


class Engine:
    """What a DeepSpeed engine is to it."""

    def __init__(self, model):
        self.model = model

    def __call__(self, compute):
        return self.model(compute)

    def eval(self):
        self.model.eval()

    def train(self):
        self.model.train()


def build(name, layout):
    auto, config, _ = CONFIGS[name]
    torch.manual_seed(0)
    model = auto.from_config(copy.deepcopy(config), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return PackedModel(model.eval(), layout)


def make_sequences(name):
    outputs = CONFIGS[name][2]
    random = np.random.default_rng(0)
    found = []
    for i, length in enumerate((7, 1, 30, 12, 12, 3, 90, 90, 90)):
        labels = random.integers(outputs, size=length)
        labels[random.random(length) < 0.3] = IGNORE_INDEX
        found.append(TokenizedSequence(random.integers(1, 60, length).tolist(), labels.tolist(), i))
    return found


@pytest.mark.parametrize("layout", ["rows", "padded", "unpadded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_at_labels_has_the_logits_of_each_label(name, layout):
    packed, sequences = build(name, layout), make_sequences(name)
    batch = collate(sequences, 0, packed.row_width)
    with torch.no_grad():
        found = packed.at_labels(batch, lambda logits, _: logits)
        expected = packed.split_logits(packed.logits(batch), batch)
    wanted = torch.cat(
        [
            logits[torch.tensor(s.labels) != IGNORE_INDEX]
            for logits, s in zip(expected, sequences, strict=True)
        ]
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_at_labels_of_nothing():
    """A rank without work takes part."""
    packed = build("qwen2", "rows")
    with torch.no_grad():
        assert len(packed.at_labels(collate([], 0, packed.row_width), lambda logits, _: logits)) == 0


def draw(packed, sequences, number, seed=0):
    lengths = np.array([len(sequence.input_ids) for sequence in sequences])
    return sample_labels(Engine(packed), packed, sequences, lengths, 0, number, seed)


def test_sample_labels_as_often_as_the_model_says():
    start_distributed()
    packed, sequences = build("bert", "rows"), make_sequences("bert")[:4]
    drawn = draw(packed, sequences, 20_000)
    packed.eval()
    with torch.no_grad():
        batch = collate(sequences, 0, packed.row_width)
        wanted = packed.at_labels(batch, lambda logits, _: logits.softmax(-1)).numpy()
    found = np.stack([(drawn.classes == c).mean(-1) for c in range(5)], axis=-1)
    # Five standard deviations of a frequency.
    assert (np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / 20_000) + 1e-9).all()


def test_sample_labels_follow_the_seed_and_the_sequence_alone():
    start_distributed()
    packed, sequences = build("qwen2", "rows"), make_sequences("qwen2")
    drawn, again = draw(packed, sequences, 3), draw(packed, sequences, 3)
    assert (drawn.classes == again.classes).all()
    assert (drawn.classes != draw(packed, sequences, 3, seed=1).classes).any()
    first = draw(packed, sequences[:2], 3)
    assert all((drawn.of(i) == first.of(i)).all() for i in range(2))


def test_mixed_replaces_a_share_of_the_labels():
    labels = [3, IGNORE_INDEX, 4] * 400
    sequence = TokenizedSequence([1] * len(labels), labels, 0)
    drawn = SampledLabels(np.full((800, 2), 9, dtype=np.int32), np.array([800]))
    (mixed,) = drawn.mixed([sequence], [0], 0.25, 0, "7")
    assert [label == IGNORE_INDEX for label in mixed.labels] == [label == IGNORE_INDEX for label in labels]
    replaced = sum(label == 9 for label in mixed.labels) / 800
    assert abs(replaced - 0.25) < 5 * (0.25 * 0.75 / 800) ** 0.5
    assert drawn.mixed([sequence], [0], 0.25, 0, "7") == [mixed]
    assert drawn.mixed([sequence], [0], 0.25, 0, "8") != [mixed]
    (all_of_them,) = drawn.mixed([sequence], [0], 1.0, 0, "7")
    assert set(all_of_them.labels) == {9, IGNORE_INDEX}


def test_labels_are_read_back_or_not_at_all(tmp_path):
    drawn = SampledLabels(np.arange(10, dtype=np.int32).reshape(5, 2), np.array([2, 5]))
    path = tmp_path / "labels.npy"
    drawn.save(path)
    found = load_labels(path, np.array([2, 3]))
    assert (found.of(1) == drawn.of(1)).all()
    assert load_labels(path, np.array([2, 4])) is None
    path.write_bytes(path.read_bytes()[:-9])
    assert load_labels(path, np.array([2, 3])) is None
    assert load_labels(tmp_path / "none.npy", np.array([2, 3])) is None
