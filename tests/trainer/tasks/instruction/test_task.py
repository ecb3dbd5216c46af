"""What of a conversation is learned, and what is said where a sequence has no room for it."""

import math

import pytest
from chat_templates import TALK, tokenizer
from fangyan.data.example import Example
from fangyan.data.tokenization import IGNORE_INDEX
from fangyan.tasks.instruction.scores import _tokenizer, answer_scores
from fangyan.tasks.instruction.task import Instruction


def example(*messages):
    return Example({"messages": tuple(messages or TALK)}, "train.jsonl:1", "g")


def answers(sequence, backend):
    return backend.decode([label for label in sequence.labels if label != IGNORE_INDEX])


def test_labels_are_the_next_sub_words_of_answers():
    found = tokenizer()
    (sequence,) = Instruction().tokenize([example()], found, 512)
    for i, label in enumerate(sequence.labels[:-1]):
        assert label in (IGNORE_INDEX, sequence.input_ids[i + 1])
    assert answers(sequence, found.backend) == "我哋去睇戲<|im_end|>amerika 去<|im_end|>"


def test_system_message_is_put_before_conversations_without_one():
    found = tokenizer()
    task = Instruction("你係助手")
    (with_system,) = task.tokenize([example()], found, 512)
    text = found.backend.decode(with_system.input_ids)
    assert text.replace("> ", ">").startswith("<|im_start|>system\n你係助手<|im_end|>")
    own = example({"role": "system", "content": "x"}, *TALK)
    (kept,) = task.tokenize([own], found, 512)
    text = found.backend.decode(kept.input_ids)
    assert text.replace("> ", ">").startswith("<|im_start|>system\nx<|im_end|>")


def test_long_conversations_keep_every_answer_whole():
    """One sequence for each answer, and what does not fit of the prompt goes at its beginning."""
    found = tokenizer()
    (whole,) = Instruction().tokenize([example()], found, 512)
    room = len(whole.input_ids) - 10
    first, second = Instruction().tokenize([example()], found, room)
    assert answers(first, found.backend) == "我哋去睇戲<|im_end|>"
    assert answers(second, found.backend) == "amerika 去<|im_end|>"
    assert len(second.input_ids) <= room
    end = max(i for i, label in enumerate(whole.labels) if label != IGNORE_INDEX) + 2
    assert whole.input_ids[end - len(second.input_ids) : end] == second.input_ids
    (finding,) = Instruction().cut_findings("train", [example()], found, room)
    assert str(finding) == (
        f"data.train: 1 prompts of its 1 examples are longer than {room} sub-words leave room for, and their "
        "beginning is not read, such as in train.jsonl:1"
    )


def test_answer_that_is_cut_is_counted():
    found = tokenizer()
    long = example(TALK[0], {"role": "assistant", "content": "去" * 60})
    (sequence,) = Instruction().tokenize([long], found, 40)
    assert len(sequence.input_ids) == 40
    assert set(answers(sequence, found.backend)) <= set("去\ufffd")
    findings = [str(finding) for finding in Instruction().cut_findings("dev", [long], found, 40)]
    assert any(
        "data.dev: 1 answers of its 1 examples" in text and "their end is not read" in text
        for text in findings
    )


def test_metrics_count_the_characters_of_answers():
    metrics = Instruction().metrics([example()], [(6.0, 5), (8.0, 9)])
    assert metrics == {
        "character_perplexity": pytest.approx(math.exp(1.0)),  # 5 and 9 characters
        "subword_perplexity": pytest.approx(math.exp(1.0)),
        "bits_per_character": pytest.approx(1.0 / math.log(2)),
    }


def test_scores_of_answers():
    same = answer_scores(["我去睇戲 ", "好呀"], ["我去睇戲", "好呀"])
    assert same == {"chrf": 100.0, "bleu": pytest.approx(100.0), "exact_match": 100.0}
    half = answer_scores(["the cat sat", "x"], ["the cat sat", "y z"])
    assert half["exact_match"] == 50.0
    assert 0 < half["chrf"] < 100


@pytest.mark.parametrize(
    ("text", "tokenizer"), [("我哋去 cinema 睇戲", "zh"), ("สวัสดีครับ", "char"), ("Grüezi mitenand", "13a")]
)
def test_words_of_bleu_are_those_of_the_script(text, tokenizer):
    assert _tokenizer([text]) == tokenizer
