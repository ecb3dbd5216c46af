"""Generation: in pieces, and with errors that reach the reader."""

import threading

import pytest
import torch
from fangyan.data.tokenization import Tokenizer
from fangyan.errors import UserError
from fangyan.models.loading import ModelConfig
from fangyan.models.packed import PackedModel
from fangyan.tasks.causal_lm.predictor import TextGenerator
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel


@pytest.fixture
def parts():
    config = ModelConfig(path="cantonese-qwen3", pretrained=False)
    model, backend = config.load(AutoModelForCausalLM, seed=0)
    return PackedModel(model, "rows").eval(), Tokenizer(backend)


def test_generate_raises_what_the_model_raises(parts):
    """It runs in a thread: an error there used to leave the reader waiting."""
    model, tokenizer = parts
    model.base.model.layers[0].self_attn.q_proj.weight = torch.nn.Parameter(torch.zeros(3, 3))
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="shape|size"):
        list(TextGenerator(model, tokenizer).generate("今日"))
    assert threading.active_count() == before


def test_generate_stops_when_its_reader_does(parts):
    before = threading.active_count()
    pieces = TextGenerator(*parts).generate("今日", max_new_tokens=100_000)
    next(pieces)
    pieces.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: 0, expected at least 1, and 1,000,000 at most"),
        ({"max_new_tokens": -5}, "max_new_tokens: -5, expected at least 1"),
        ({"max_new_tokens": 10**30}, "expected at least 1, and 1,000,000 at most"),
        ({"temperature": -0.5}, "temperature: -0.5, expected 0, or at least 0.001 and 1000 at most"),
        ({"temperature": 1e-300}, "temperature: 1e-300, expected 0, or at least 0.001"),
        ({"temperature": float("nan")}, "temperature: nan, expected 0, or at least 0.001"),
        ({"temperature": float("inf")}, "temperature: inf, expected 0, or at least 0.001"),
    ],
)
def test_generate_refuses_options_out_of_bounds(parts, options, sentence):
    with pytest.raises(UserError, match=sentence):
        TextGenerator(*parts).generate("今日", **options)


def test_generate_beyond_a_table_of_positions(parts):
    config = GPT2Config(vocab_size=len(parts[1].backend), n_positions=16, n_embd=16, n_layer=1, n_head=2)
    generator = TextGenerator(PackedModel(GPT2LMHeadModel(config), "rows").eval(), parts[1])
    with pytest.raises(UserError, match="may have 103 sub-words, but the model takes 16; expected a shorter"):
        list(generator.generate("今日", max_new_tokens=100))


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_generate_at_any_temperature_within_bounds(parts, temperature):
    assert "".join(TextGenerator(*parts).generate("今日", max_new_tokens=5, temperature=temperature))


def test_predict_is_what_generate_writes(parts):
    generator = TextGenerator(*parts)
    written = "".join(generator.generate("今日", max_new_tokens=5))
    assert generator.predict(["今日"], max_new_tokens=5) == [written]
    (continuation,) = generator.stream(["今日"], options={"max_new_tokens": 5})
    assert "".join(continuation.pieces()) == "今日" + written
