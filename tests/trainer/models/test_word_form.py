"""A tagger that starts from nothing: its features by hand, sentences apart, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from fangyan.data.example import Example
from fangyan.data.packing import collate
from fangyan.data.tokenization import TokenizedSequence, WordAlignment
from fangyan.errors import UserError
from fangyan.models.loading import ModelConfig
from fangyan.models.packed import PackedModel
from fangyan.models.word_form import WordFormConfig, WordFormForTokenClassification
from fangyan.models.word_form.alphabet import BOUNDARY, alphabet, character_tokenizer, shape_class
from fangyan.models.word_form.modeling import WordFeatures, find_words
from fangyan.recipe import parse_recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

WORDS = ["Sámegiella", "giella", "giela", "giellai", "2024", "A.B.", "我哋", "去", "sámi", "X"]


def build(**fields):
    torch.manual_seed(0)
    tokenizer = character_tokenizer(WORDS)
    config = WordFormConfig(
        **alphabet(tokenizer), hash_rows=256, feature_dim=8, hidden_size=16, num_labels=3, **fields
    )
    return WordFormForTokenClassification(config).eval(), tokenizer


def features(words):
    """The table's rows of each word."""
    model, tokenizer = build()
    ids = torch.tensor([tokenizer(" ".join(words))["input_ids"]])
    found = find_words(ids, torch.ones_like(ids, dtype=torch.bool), model.config.boundary_token_id)
    return model.word_form.features(found)


def same(left, right):
    """Which of prefixes 1 to 3, suffixes 1 to 4, shape and form two words share."""
    return (features([left])[0] == features([right])[0]).tolist()


def test_words_share_the_features_that_they_have_in_common():
    assert same("giella", "giela") == [True, True, True, True, True, False, False, True, False]
    assert same("sámi", "Sámi") == [True] * 7 + [False, True]  # lower-cased, but for its shape
    assert same("X", "A") == [False] * 7 + [True, False]
    assert same("2024", "24") == [True, False, False, True, True, False, False, True, False]
    # A word shorter than an affix has the whole of itself.
    assert same("我", "我")[:7] == [True] * 7


def test_features_do_not_depend_on_the_neighbours():
    torch.testing.assert_close(features(WORDS), torch.cat([features([word]) for word in WORDS]))


@pytest.mark.parametrize(("character", "kind"), [("a", 1), ("我", 1), ("Á", 2), ("7", 3), (".", 4), ("ء", 1)])
def test_shape_class(character, kind):
    assert shape_class(character) == kind


@settings(max_examples=40, deadline=None)
@given(
    sentences=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), min_size=1, max_size=5),
    padding=st.integers(0, 4),
)
def test_sentences_of_a_batch_do_not_know_of_each_other(sentences, padding):
    model, tokenizer = build()
    ids = [tokenizer(" ".join(words))["input_ids"] for words in sentences]
    width = max(map(len, ids)) + padding
    batch = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = (torch.arange(width) < torch.tensor([[len(row)] for row in ids])).long()
    with torch.no_grad():
        together = model(batch, mask).logits
        for row, found in zip(ids, together, strict=True):
            alone = model(torch.tensor([row])).logits[0]
            torch.testing.assert_close(found[: len(row)], alone, rtol=1e-5, atol=1e-5)


def test_a_word_has_one_output_at_all_of_its_characters():
    model, tokenizer = build()
    encoded = tokenizer("giella 我哋", return_tensors="pt")
    marks = (encoded["input_ids"][0] == model.config.boundary_token_id).nonzero()[:, 0].tolist()
    assert marks == [0, 7]
    logits = model(**encoded).logits[0]
    # To the last digits: a matrix product may add up the terms of some rows in another order.
    torch.testing.assert_close(logits[:7], logits[:1].expand(7, -1))
    assert not torch.allclose(logits[0], logits[7])


def test_every_weight_has_a_gradient_even_of_padding():
    model, _ = build()
    model(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3)).logits.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_networks_side_by_side_learn_each_and_tag_together():
    """Loss and gradients are the mean of those of each network alone; outside of training, logits are."""
    model, tokenizer = build(num_networks=3, word_dropout=0.0, hidden_dropout_prob=0.0)
    model = model.double()
    encoded = tokenizer(["giella 我哋 去", "X"], return_tensors="pt", padding=True)
    ids = encoded["input_ids"]
    labels = torch.where(ids == model.config.boundary_token_id, torch.arange(ids.shape[1]) % 3, -100)
    model.train()
    outputs = model(**encoded, labels=labels)
    outputs.loss.backward()
    together = {name: p.grad for name, p in model.named_parameters()}
    alone = WordFormForTokenClassification(model.config).double()
    losses, gradients = [], []
    alone.word_form.networks = alone.word_form.networks[:1]
    for i, logits in enumerate(outputs.logits):
        state = {
            name.replace(f"networks.{i}.", "networks.0."): value
            for name, value in model.state_dict().items()
            if "networks" not in name or f"networks.{i}." in name
        }
        alone.load_state_dict(state)
        alone.train().zero_grad()
        found = alone(**encoded, labels=labels)
        found.loss.backward()
        torch.testing.assert_close(found.logits[0], logits)
        losses.append(found.loss)
        gradients.append({name: p.grad.clone() for name, p in alone.named_parameters()})
    torch.testing.assert_close(outputs.loss, torch.stack(losses).mean())
    for name, gradient in together.items():
        if "networks" in name:
            i = int(name.split("networks.")[1][0])
            expected = gradients[i][name.replace(f"networks.{i}.", "networks.0.")] / 3
        else:
            expected = torch.stack([of_one[name] for of_one in gradients]).mean(0)
        torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(model.eval()(**encoded).logits, outputs.logits.mean(0))


@pytest.mark.parametrize("mean", [False, True])
def test_the_fused_loss_is_that_of_the_networks(mean):
    """With weights of classes and label smoothing; also where a word's characters are averaged."""
    model, tokenizer = build(num_networks=2, word_dropout=0.0, hidden_dropout_prob=0.0)
    sequences = []
    for words in (["giella", "我哋"], ["X", "2024", "giela"]):
        widths = [len(word) + 1 for word in words]
        places = [sum(widths[: i + 1]) - 1 for i in range(len(words))]
        labels = [places.index(i) % 3 if i in places else -100 for i in range(sum(widths))]
        alignment = WordAlignment(places, 0, (0, len(words)), len(words), widths if mean else [])
        sequences.append(TokenizedSequence(tokenizer(" ".join(words))["input_ids"], labels, 0, alignment))
    packed = PackedModel(model, "padded").train()
    batch = replace(collate(sequences, 0, packed.row_width), class_weights=torch.tensor([1.0, 2.0, 0.5]))
    loss = packed.loss(batch, divisor=7.0, label_smoothing=0.1)
    losses = [
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1),
            batch.labels.flatten(),
            batch.class_weights,
            label_smoothing=0.1,
            reduction="sum",
        )
        for logits in model(batch.input_ids, (batch.sequence_ids > 0).long()).logits
    ]
    assert len(losses) == 2
    torch.testing.assert_close(loss, torch.stack(losses).mean() / 7.0)


def test_tokenizer_marks_every_word_and_nothing_else():
    tokenizer = character_tokenizer(["ab", "c d", BOUNDARY])
    assert tokenizer.convert_ids_to_tokens(tokenizer("  ab\tc ")["input_ids"])[:5] == [
        BOUNDARY, "a", "b", BOUNDARY, "c",
    ]  # fmt: skip
    split = tokenizer(["ab", "c"], is_split_into_words=True)
    assert split.word_ids() == [0, 0, 0, 1, 1]
    assert tokenizer("x")["input_ids"] == [3, tokenizer.unk_token_id]


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model, tokenizer = build()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    encoded = AutoTokenizer.from_pretrained(tmp_path)("Sámegiella giella", return_tensors="pt")
    torch.testing.assert_close(again(**encoded).logits, model(**encoded).logits, rtol=0, atol=0)


@pytest.mark.parametrize(("size", "parameters"), [("tiny", 0.2e6), (None, 0.9e6), ("base", 3.5e6)])
def test_sizes(size, parameters):
    train = [Example({"tokens": tuple(WORDS), "tags": ("x",) * len(WORDS)}, "", "")]
    config = ModelConfig(path="scratch", size=size)
    model, _ = config.load(AutoModelForTokenClassification, 0, {"num_labels": 17}, train=train)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.2)
    again, _ = config.load(AutoModelForTokenClassification, 0, {"num_labels": 17}, train=train)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": {"path": "x", "size": "tiny"}}, "size is tiny, but only path: scratch has sizes"),
        (
            {"model": {"path": "scratch", "extend_vocabulary": 5}},
            "extend_vocabulary is given, but scratch has every character of train",
        ),
        (
            {"model": {"path": "scratch"}, "adaptation": {"name": "lora"}},
            "model.path is scratch, which has nothing that lora could leave as it is; expected full",
        ),
    ],
)
def test_what_means_nothing_is_refused(fields, message):
    with pytest.raises(UserError) as error:
        parse_recipe({"name": "x", "data": {"format": "hkcancor"}, **fields})
    assert message in str(error.value)


def test_other_tasks_are_refused():
    with pytest.raises(UserError, match="model.path: scratch is a tagger of words, expected a folder"):
        ModelConfig(path="scratch").load(AutoModelForCausalLM, 0)


def test_hashes_are_those_of_any_machine():
    """A model that was trained elsewhere looks its words up in the same rows."""
    model, tokenizer = build()
    ids = torch.tensor([tokenizer("giella 2024")["input_ids"]])
    words = find_words(ids, torch.ones_like(ids, dtype=torch.bool), model.config.boundary_token_id)
    rows = WordFeatures(model.config)(words).tolist()
    assert rows == [[181, 227, 183, 163, 185, 63, 94, 94, 102], [160, 57, 197, 63, 115, 77, 217, 144, 236]]
