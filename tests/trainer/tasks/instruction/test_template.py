"""Which sub-words of a conversation are learned, by templates of all kinds."""

import pytest
from chat_templates import BRACKETS, CHATML, TALK, THINKS, tokenizer
from fangyan.data.example import Example
from fangyan.data.tokenization import IGNORE_INDEX
from fangyan.errors import UserError
from fangyan.tasks.instruction.task import Instruction
from fangyan.tasks.instruction.template import ChatTemplate
from tiny_tokenizers import KINDS


def learned(pieces, backend):
    return [backend.decode(piece.ids).strip() for piece in pieces if piece.is_answer]


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "wordpiece"])
@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (BRACKETS, "</s>"), (None, "</s>")])
def test_answers_and_their_ends_are_learned(kind, template, end):
    """Of every turn; and what is before an answer is what a model is given to answer."""
    found = tokenizer(kind, template)
    chat = ChatTemplate(found.backend)
    assert found.backend.convert_tokens_to_ids(end) in chat.end_ids
    pieces = chat.pieces(TALK)
    answers = [piece.ids for piece in pieces if piece.is_answer]
    assert len(answers) == 2
    for ids in answers:
        assert found.backend.convert_ids_to_tokens(ids[-1]) == end
        assert sum(i in chat.end_ids for i in ids) == 1
    if kind not in ("sentencepiece", "sentencepiece_of_words", "byte_fallback"):  # of a few letters alone
        assert [text.removesuffix(end).strip() for text in learned(pieces, found.backend)] == [
            TALK[1]["content"],
            TALK[3]["content"],
        ]
    before = [i for piece in pieces[: [p.is_answer for p in pieces].index(True)] for i in piece.ids]
    assert before == chat.prompt(TALK[:1])


def test_answers_that_later_turns_change_are_given_one_by_one():
    found = tokenizer(template=THINKS)
    talk = [TALK[0], {"role": "assistant", "content": "<think>我</think>去"}, *TALK[2:]]
    assert ChatTemplate(found.backend).pieces(talk) is None
    sequences = Instruction().tokenize([Example({"messages": tuple(talk)}, "x:1", "")], found, 512)
    assert len(sequences) == 2
    texts = [found.backend.decode([i for i in s.labels if i != IGNORE_INDEX]) for s in sequences]
    assert texts == ["<think>我</think>去<|im_end|>", "amerika 去<|im_end|>"]
    assert "<think>" not in found.backend.decode(sequences[1].input_ids)


def test_template_of_other_roles_is_refused_by_line():
    found = tokenizer(template=BRACKETS)
    example = Example({"messages": ({"role": "system", "content": "x"}, *TALK)}, "train.jsonl:7", "")
    message = (
        "train.jsonl:7: model.path: its chat template does not write messages of system, user.*no system"
    )
    with pytest.raises(UserError, match=message):
        Instruction().tokenize([example], found, 512)


def test_template_whose_answer_is_not_behind_its_prompt_is_refused():
    with pytest.raises(UserError, match="writes something else before an answer"):
        ChatTemplate(
            tokenizer(template="{% for m in messages|reverse %}{{ m.content }}</s>{% endfor %}").backend
        )


def test_tokenizer_without_template_and_end_is_refused():
    backend = KINDS["wordpiece"]()
    with pytest.raises(UserError, match="neither a chat template nor a token that ends a text"):
        ChatTemplate(backend)
