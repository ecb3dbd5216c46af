"""Windows of long contexts, and what each learns."""

import random
from itertools import pairwise

import pytest
from fangyan.data.tokenization import Tokenizer
from fangyan.tasks.extractive_qa.windows import Encoder
from tiny_tokenizers import KINDS, byte_level_of_words, sentencepiece, wordpiece
from tokenizers.processors import TemplateProcessing


def bert():
    """WordPiece with BERT's pairs: special tokens, and segments."""
    backend = wordpiece()
    backend.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    backend.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    special = [(token, backend.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    backend.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return backend


def long(count, seed=0):
    draw = random.Random(seed)
    return "".join(draw.choice("我哋去睇戲") for _ in range(count))


@pytest.mark.parametrize("kind", [*KINDS.values(), bert], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("length", [8, 13, 64])
def test_windows_are_the_pair_that_the_tokenizer_makes(kind, length):
    backend = kind()
    tokenizer = Tokenizer(backend)
    question, context = "睇我", "我哋去 睇戲 ngóh deih heui " * 3
    whole = backend(question, context)
    encoded = Encoder(tokenizer, length)(question, context)
    bounds = encoded.bounds()
    windows = [encoded.window(0, *bound) for bound in bounds]
    assert all(len(window.input_ids) <= length for window in windows)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == len(encoded.context.ids)
    for (start, end), (following, _) in pairwise(bounds):
        assert start < following <= end - (end - start) // 4
    if encoded.cut == 0:
        pieces = [i for (start, _), (end, _) in pairwise(bounds)
                  for i in encoded.context.ids[start:end]]  # fmt: skip
        joined = [*encoded.before.ids, *pieces, *encoded.context.ids[bounds[-1][0] :], *encoded.after.ids]
        assert joined == whole["input_ids"]
    if kind is bert:
        ids = windows[0].input_ids
        second = ids.index(backend.sep_token_id) + 1
        assert windows[0].segments == [0] * second + [1] * (len(ids) - second)


@pytest.mark.parametrize("kind", [bert, sentencepiece, byte_level_of_words], ids=lambda kind: kind.__name__)
def test_every_answer_is_whole_in_a_window(kind):
    tokenizer = Tokenizer(kind())
    context = long(150)
    draw = random.Random(2)
    encode = Encoder(tokenizer, 40)
    for _ in range(60):
        size = draw.randint(1, 8)
        start = draw.randrange(len(context) - size)
        answer = {"text": context[start : start + size], "start": start}
        encoded = encode("我", context)
        sequences = list(encoded.labelled(0, encoded.locate(context, answer)))
        learned = [sequence for sequence in sequences if sequence.targets != [0.0, 0.0]]
        assert learned
        for sequence in learned:
            first, last = (int(place) for place in sequence.targets)
            begins, ends = sequence.characters[2 * first], sequence.characters[2 * last + 1]
            # Byte-level sub-words may begin and end within a character.
            assert begins <= start < start + size <= ends
            assert kind is byte_level_of_words or (begins, ends) == (start, start + size)
        assert all(sum(label == 0 for label in sequence.labels) == 1 for sequence in sequences)


def test_long_answer_has_a_window_of_its_own():
    tokenizer = Tokenizer(bert())
    context = long(90)
    encoded = Encoder(tokenizer, 24)("我", context)  # room for 20
    answer = {"text": context[14:31], "start": 14}
    span = encoded.locate(context, answer)
    assert span == (14, 30)
    sequences = list(encoded.labelled(0, span))
    assert len(sequences) == len(encoded.bounds()) + 1
    assert [sequence.targets != [0.0, 0.0] for sequence in sequences] == [False] * (len(sequences) - 1) + [
        True
    ]
    assert encoded.locate(context, {"text": context[14:35], "start": 14}) is None


def test_long_question_leaves_room():
    encoded = Encoder(Tokenizer(bert()), 32)(long(100), long(40))
    window = encoded.window(0, *encoded.bounds()[0])
    assert encoded.cut == 100 - (32 - 8 - 3)
    assert encoded.room == 8
    assert len(window.input_ids) == 32


def test_nothing_has_a_first_sub_word_all_the_same():
    tokenizer = Tokenizer(wordpiece())
    encoded = Encoder(tokenizer, 16)("\u200b", "我哋")
    assert encoded.before.ids == [tokenizer.unknown_id]
    window = encoded.window(0, *encoded.bounds()[0])
    assert window.characters == [-1, -1, 0, 1, 1, 2]
    nothing = Encoder(tokenizer, 16)("我", "\u200b")
    (bound,) = nothing.bounds()
    assert len(nothing.window(0, *bound).input_ids) == 1
