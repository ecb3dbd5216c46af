"""No labelled token is dropped: not by windows, not by normalization, not by the tokenizer."""

from itertools import pairwise

import pytest
from fangyan.data.encode import IGNORE, Encoder
from fangyan.models.electra_gguf import find_file, read_electra
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def electra():
    return read_electra(find_file())[1]


def byte_level_tokenizer():
    """A byte-level BPE as causal models have, with a beginning-of-sequence token and no unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator(["ngóh deih heui tái hei"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>")


def test_special_tokens_surround_a_window(electra):
    (window,) = Encoder(electra, 512).windows(tuple("我哋"), [3, 4])
    assert electra.convert_ids_to_tokens(window.input_ids) == ["[CLS]", "我", "哋", "[SEP]"]
    assert window.targets == [IGNORE, 3, 4, IGNORE]
    encoder = Encoder(byte_level_tokenizer(), 512)
    (window,) = encoder.windows(("heui",), [1])
    assert window.input_ids[0] == 0
    assert window.first == [1]


@pytest.mark.parametrize("token", ["\u0301", "\u200b", "\u200d", "🏿", "𡃉", "é", "ngo\u0301h", "OK"])
def test_what_normalizes_to_nothing_keeps_a_subword(electra, token):
    """huggingface/tokenizers 1663: a sentence's word_ids skip such words, and labels shift."""
    for tokenizer in (electra, byte_level_tokenizer()):
        (window,) = Encoder(tokenizer, 512).windows(("a", token, "b"), [5, 6, 7])
        assert len(window.first) == 3
        assert [window.targets[i] for i in window.first] == [5, 6, 7]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=120),
    max_length=st.integers(8, 40),
)
def test_windows_own_every_token_once(electra, sizes, max_length):
    encoder = Encoder(electra, max_length)
    tokens = tuple("字" * size for size in sizes)
    classes = list(range(len(sizes)))
    windows = encoder.windows(tokens, classes)
    assert all(len(window.input_ids) <= max_length for window in windows)
    owned = [token for window in windows for token in range(*window.owned)]
    assert owned == classes
    learned = [target for window in windows for target in window.targets if target != IGNORE]
    assert learned == classes
    for window in windows:
        assert window.start <= window.owned[0] <= window.owned[1] <= window.start + len(window.first)


def test_owned_tokens_have_context_on_both_sides(electra):
    windows = Encoder(electra, 66).windows(tuple("字" * 200))
    assert len(windows) > 3
    for left, right in pairwise(windows):
        seam = left.owned[1]
        assert seam - right.start >= 7
        assert left.start + len(left.first) - seam >= 7


def test_without_classes_nothing_is_learned(electra):
    (window,) = Encoder(electra, 512).windows(tuple("我哋"))
    assert set(window.targets) == {IGNORE}
