"""What a masked language model refuses, and how it fills gaps."""

import pytest
import torch
from fangyan.data.tokenization import Tokenizer
from fangyan.errors import UserError
from fangyan.models.packed import PackedModel
from fangyan.tasks.masked_lm.predictor import MaskFiller
from tiny_exports import tokenizer
from transformers import BertConfig, BertForMaskedLM


@pytest.fixture
def filler():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    backend = tokenizer()
    model = BertForMaskedLM(BertConfig(vocab_size=len(backend), max_position_embeddings=16, **sizes))
    return MaskFiller(PackedModel(model, "rows").eval(), Tokenizer(backend), 16)


def test_every_gap_has_candidates_and_the_rest_stays(filler):
    first, second = filler.predict(["我  [MASK] 飯[MASK]!", "[MASK]"])
    assert first.filled.startswith("我  ")
    assert first.filled.endswith("!")
    assert "[MASK]" not in first.filled
    assert [len(place) for place in first.candidates] == [5, 5]
    assert all(0 < share < 1 for place in first.candidates for _, share in place)
    assert len(second.candidates) == 1
    assert second.record()["filled"] == "".join(second.pieces())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("我食飯", r"predict: '我食飯' has no \[MASK\], expected one for each gap"),
        ("我" * 20 + "[MASK]", "predict: a text of 23 sub-words, expected 16 at most"),
    ],
)
def test_texts_that_cannot_be_filled_are_refused(filler, text, message):
    with pytest.raises(UserError, match=message):
        filler.predict([text])


def test_options_of_writers_are_refused(filler):
    with pytest.raises(UserError, match="temperature: is for models that write on"):
        list(filler.stream(["[MASK]"], options={"temperature": 1.0}))
