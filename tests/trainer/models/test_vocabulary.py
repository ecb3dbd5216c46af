"""Characters that a tokenizer does not know: counted, added, trained, exported and loaded again."""

import pytest
import torch
from fangyan.data.example import Example
from fangyan.data.packing import collate
from fangyan.data.tokenization import TokenizedSequence
from fangyan.data.vocabulary import characters_without_subword, unknown_characters
from fangyan.distributed.process_group import start_distributed
from fangyan.errors import UserError
from fangyan.inference.load import load_exported, merge
from fangyan.models.packed import PackedModel
from fangyan.models.vocabulary import extend_vocabulary
from fangyan.recipe import parse_recipe
from fangyan.training.checkpoint import Checkpoints
from fangyan.training.run_folder import RunFolder, Start
from fangyan.training.trainer import Trainer
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

TEXTS = ["我哋ab 去", "哋 冇我", "a哋b", "我 去"]
SPECIAL = ["[PAD]", "[UNK]", "</s>"]


def wordpiece():
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, "a", "##b", "b", "我", "去"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_level():
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def unigram():
    pieces = [*SPECIAL, "▁", "a", "b", "▁a", "我", "去"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0 - i) for i, piece in enumerate(pieces)], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


KINDS = [wordpiece, byte_level, unigram]


def fast(kind):
    unknown = {} if kind is byte_level else {"unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=kind(), pad_token="[PAD]", eos_token="</s>", **unknown)


def tiny_model(size, tied=True):
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def examples(texts=TEXTS):
    return [Example({"text": text}, "", "") for text in texts]


def test_characters_without_subword():
    found = characters_without_subword(examples(), fast(wordpiece))
    assert [(c.text, c.count, c.pieces, c.unknown) for c in found] == [
        ("哋", 3, (1,), True),
        ("冇", 1, (1,), True),
    ]
    assert unknown_characters(found) == (
        "characters unknown to the tokenizer: 2, which occur 4 times (哋 3, 冇 1), all of them the same "
        "to the model; model.extend_vocabulary adds the most frequent"
    )
    assert characters_without_subword(examples(["ab 我去"]), fast(wordpiece)) == []
    assert unknown_characters([]) is None


def test_characters_without_subword_of_tagged_data():
    tagged = [Example({"tokens": ("哋", "我哋"), "tags": ("x", "y")}, "", "")]
    (found,) = characters_without_subword(tagged, fast(wordpiece))
    assert (found.text, found.count) == ("哋", 2)


@pytest.mark.parametrize("kind", [byte_level, unigram])
def test_characters_without_subword_leave_out_the_space(kind):
    found = {c.text: c for c in characters_without_subword(examples(["哋"]), fast(kind))}
    backend = fast(kind)
    expected = backend.convert_tokens_to_ids(["å", "ĵ", "ĭ"] if kind is byte_level else ["[UNK]"])
    assert found["哋"].pieces == tuple(expected)
    assert found["哋"].unknown == (kind is unigram)
    assert unknown_characters(list(found.values())) is None or kind is unigram


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_extend_vocabulary(tmp_path, kind, tied):
    backend = fast(kind)
    model = tiny_model(len(backend), tied)
    others = ["我ab 去", "ab a 我", "去"]
    before = [backend(text)["input_ids"] for text in others]
    old = model.get_input_embeddings().weight.detach().clone()
    (added, *_) = characters_without_subword(examples(), backend)
    ids = extend_vocabulary(model, backend, [added])
    assert ids == [len(old)] == model.new_tokens
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (head is table) == tied
    expected = old.mean(0) if added.unknown else old[list(added.pieces)].mean(0)
    assert torch.allclose(table[ids[0]], expected)
    assert torch.equal(table[:-1], old)
    assert model.config.vocab_size == len(backend) == len(table)
    # Other text is what it was, and so is the text around the character.
    assert [backend(text)["input_ids"] for text in others] == before
    backend.save_pretrained(tmp_path)
    for tokenizer in (backend, AutoTokenizer.from_pretrained(tmp_path)):
        pieces = tokenizer.convert_ids_to_tokens(tokenizer("a哋b", add_special_tokens=False)["input_ids"])
        assert [piece.lstrip("▁") for piece in pieces] == ["a", "哋", "b"]
        assert tokenizer.decode(tokenizer("a哋b 我")["input_ids"]).replace(" ", "") == "a哋b我"
    if kind is not wordpiece:
        assert backend.decode(backend("a哋b 我")["input_ids"]) == "a哋b 我"


def test_extend_vocabulary_where_the_table_has_room():
    """Tables are often larger than vocabularies; configurations and files then keep their sizes."""
    backend = fast(byte_level)
    model = tiny_model(len(backend) + 9)
    old = model.get_input_embeddings().weight.detach().clone()
    (character,) = characters_without_subword(examples(["哋"]), backend)
    (new,) = extend_vocabulary(model, backend, [character])
    table = model.get_input_embeddings().weight
    assert table.shape == old.shape
    assert torch.allclose(table[new], old[list(character.pieces)].mean(0))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Train a tiny model with two characters added; returns the trainer and its run folder."""
    monkeypatch.chdir(tmp_path)

    def train(kind=wordpiece, tied=True, **adaptation):
        backend = fast(kind)
        tiny_model(len(backend), tied).save_pretrained("base")
        backend.save_pretrained("base")
        (tmp_path / "a.txt").write_text("\n".join(TEXTS * 3) + "\n", encoding="utf-8")
        content = {
            "name": "v",
            "run_dir": "run",
            "task": {"name": "causal_lm"},
            "data": {"format": "text", "train": "a.txt", "dev": "a.txt"},
            "model": {"path": "base", "extend_vocabulary": 2},
            "adaptation": adaptation or {"name": "full"},
            "optimizer": {"lr": 1e-2},
            "train": {"epochs": 2, "batch_tokens": 32},
        }
        start_distributed()
        trainer = Trainer(parse_recipe(content))
        trainer.start_engine()
        folder = RunFolder(tmp_path / "run", Checkpoints(tmp_path / "run" / "checkpoints", keep=1))
        trainer.fit(folder, Start())
        trainer.engine.destroy()
        return trainer

    return train


def logits(model, ids):
    batch = collate([TokenizedSequence(ids, [-100] * len(ids), 0)], 0, model.row_width)
    with torch.no_grad():
        return model.eval().logits(batch)[:, : len(ids)]


LORA = {"name": "lora", "rank": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tied", "adaptation"),
    [
        (wordpiece, True, {"name": "full"}),
        (byte_level, False, {"name": "full"}),
        (wordpiece, True, LORA),
        (byte_level, True, LORA),
        (unigram, False, LORA),
        (wordpiece, True, LORA | {"quantization": "nf4"}),
        (wordpiece, True, {"name": "dora", "rank": 2}),
    ],
)
def test_extended_vocabulary_survives_training_export_and_merging(tmp_path, trained, kind, tied, adaptation):
    trainer = trained(kind, tied, **adaptation)
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "added to the vocabulary: 2 characters, 哋 冇" in log or kind is byte_level
    backend = trainer.tokenizer.backend
    ids = backend("我哋 冇ab")["input_ids"]
    new = set(trainer.model.base.new_tokens)
    assert new & set(ids)
    expected = logits(PackedModel(trainer.model.model, "rows"), ids)  # an export unsets the attention
    exported = load_exported(tmp_path / "run" / "model")
    assert exported.backend("我哋 冇ab")["input_ids"] == ids
    torch.testing.assert_close(
        logits(PackedModel(exported.model, "rows"), ids), expected, rtol=1e-4, atol=1e-4
    )
    merge(tmp_path / "run", tmp_path / "merged")
    plain = Qwen3ForCausalLM.from_pretrained(tmp_path / "merged")
    found = plain(input_ids=torch.tensor([ids])).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) == (not tied)  # noqa: SIM118


@pytest.mark.slow
def test_new_tokens_learn_beside_an_adapter(trained):
    trainer = trained(wordpiece, True, **LORA)
    deltas = [p for name, p in trainer.model.named_parameters() if "trainable_tokens_delta" in name]
    assert [p.shape for p in deltas] == [(2, 32)]
    original = trainer.model.base.get_input_embeddings().token_adapter.trainable_tokens_original["default"]
    assert (deltas[0] - original).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"adaptation": {"name": "ia3"}}, "but ia3 trains no embeddings; expected full or lora"),
        (
            {"adaptation": {"name": "full", "freeze_embeddings": True}},
            "but adaptation.freeze_embeddings keeps those there are; expected one of both",
        ),
        (
            {"adaptation": LORA, "engine": {"zero_stage": 3}},
            "whose embeddings lora keeps whole; expected ZeRO 0",
        ),
    ],
)
def test_extend_vocabulary_where_it_cannot_learn(section, message):
    content = {"name": "v", "data": {"format": "hkcancor"}, "model": {"extend_vocabulary": 2}}
    with pytest.raises(UserError, match=f"model.extend_vocabulary is 2, {message}"):
        parse_recipe(content | section)
