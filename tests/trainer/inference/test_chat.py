"""A conversation in the terminal: each line is answered with all before it, until they are forgotten."""

import io
import sys

import fangyan
import pytest
from fangyan.cli.output import user_lines
from fangyan.errors import UserError
from fangyan.inference.chat import chat
from tiny_exports import assistant, tagger, writer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return assistant(tmp_path_factory.mktemp("chat") / "model", system="我你佢")


def talk(model, *lines):
    pieces = []
    chat(model, lines, pieces.append, {"max_new_tokens": 6})
    return "".join(pieces).split("\n")[:-1]


def test_a_conversation_is_remembered_until_it_is_reset(model):
    first, second, again = talk(model, "我食飯", "", "你去街", "/reset", "我食飯", "/quit", "佢")
    predictor = fangyan.load(model)
    user = [{"role": "user", "content": text} for text in ("我食飯", "你去街")]
    assert first == again == "".join(predictor.chat(user[:1], 6))
    messages = [user[0], {"role": "assistant", "content": first}, user[1]]
    assert second == "".join(predictor.chat(messages, 6))


def test_answers_together_are_answers_alone(model):
    predictor = fangyan.load(model)
    questions = ["我", "我食飯飲茶今日去街", "佢去"]
    together = predictor.answer_all([[{"role": "user", "content": text}] for text in questions], 5)
    assert together == predictor.predict(questions, max_new_tokens=5)
    (answer,) = predictor.stream(["我"], options={"max_new_tokens": 5})
    assert answer.record() == {"question": "我", "answer": together[0]}


def test_models_that_answer_nothing_are_refused(tmp_path):
    for make in (tagger, writer):
        folder = make(tmp_path / make.__name__)
        with pytest.raises(UserError, match="chat: is for models of the task instruction"):
            talk(folder, "我")
        assert talk(folder, "", "/reset", "/quit") == []


def test_options_out_of_bounds_are_refused(model):
    predictor = fangyan.load(model)
    with pytest.raises(UserError, match="max_new_tokens: 0, expected at least 1"):
        predictor.chat([{"role": "user", "content": "我"}], 0)


def test_lines_come_from_standard_input_where_there_is_no_terminal(monkeypatch):
    class Piped:
        buffer = io.BytesIO("我\n你\n".encode())

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdin", Piped())
    assert list(user_lines()) == ["我", "你"]
