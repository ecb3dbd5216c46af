"""Labelling in the terminal: each sentence is saved as it is done, and what is typed wrong is said."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import fangyan
import pytest
from fangyan.cli import app
from fangyan.data.formats import parse_data
from fangyan.errors import UserError
from fangyan.selection.command import Selection
from fangyan.terminal import Terminal
from small_disk import fill, mounted
from tiny_exports import classifier, tagger

TEXTS = ["我食飯", "你飲茶", "今日去街", "佢今日食飯"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tagger(tmp_path_factory.mktemp("labelling") / "model")


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "raw.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return tmp_path / "raw.txt"


def label(model, raw, output, *lines, number=4):
    """Type some lines; return what was shown, and how many are labelled."""
    selection = Selection.of(model, raw, output)
    shown = io.StringIO()
    counts = selection.label(number, "k_centre", 0, iter(lines), Terminal(file=shown, width=100))
    return shown.getvalue(), counts


def examples(path, **data):
    return list(parse_data({"format": "conll", "train": str(path), **data}, "").read(path))


def test_enter_accepts_what_is_predicted(model, raw, tmp_path):
    shown, counts = label(model, raw, tmp_path / "o.conll", "", "", "", "")
    assert counts == (4, 4)
    found = examples(tmp_path / "o.conll")
    assert sorted("".join(e.fields["tokens"]) for e in found) == sorted(TEXTS)
    predicted = fangyan.load(model).predict("".join(e.fields["tokens"]) for e in found)
    assert [e.fields["tags"] for e in found] == [each.tags for each in predicted]
    assert shown.startswith("Enter accepts; 3 v or 3-5 v 7 n change tags; u undoes; q leaves")
    assert f"1 of 4  {raw}:" in shown
    assert "# 1 = " not in (tmp_path / "o.conll").read_text(encoding="utf-8")


def test_places_and_tags_correct(model, raw, tmp_path):
    label(model, raw, tmp_path / "o.conll", "1-2 B-v 3 I-v", "2 B-n", "", "q")
    (first,) = examples(tmp_path / "o.conll")
    assert first.fields["tags"][:3] == ("B-v", "B-n", "I-v")


def test_what_is_typed_wrong_is_said(model, raw, tmp_path):
    wrong = {
        "2": "expected places and tags by turns, such as 3 v, or 3-5 v 7 n",
        "9 B-v": "place '9', expected a number from 1 to ",
        "3-2 B-v": "place '3-2', expected a number from 1 to ",
        "x B-v": "place 'x', expected a number",
        "2 B-z": "'B-z' is not among the 4 labels of the model, such as B-",
        "1 I-n": "I-n begins the sentence breaks a rule of IOB2, expected tags that keep it",
        "u": "nothing to undo: no sentence has been done since the command began",
    }
    for command, message in wrong.items():
        shown, counts = label(model, raw, tmp_path / "o.conll", command, "", "q")
        if command == "1 I-n":  # seen when the sentence is to be saved
            assert counts == (0, 4)
        else:
            assert len(examples(tmp_path / "o.conll")) == 1
            (tmp_path / "o.conll").unlink()
        assert message in " ".join(shown.split())


def test_undo_takes_the_last_sentence_back(model, raw, tmp_path):
    _, counts = label(model, raw, tmp_path / "o.conll", "1 B-v", "", "", "u", "u", "1 B-n", "", "q")
    assert counts == (1, 4)
    (first,) = examples(tmp_path / "o.conll")
    assert first.fields["tags"][0] == "B-n"


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_labelling_goes_on(model, raw, tmp_path, end):
    output = tmp_path / "o.conll"
    assert label(model, raw, output, "", "")[1] == (2, 4)  # the input ends
    output.write_text(output.read_text(encoding="utf-8").rstrip("\n") + end, encoding="utf-8")
    before = output.read_text(encoding="utf-8")
    assert label(model, raw, output, "q")[1] == (2, 4)
    assert output.read_text(encoding="utf-8") == before
    shown, counts = label(model, raw, output, "", "", "")
    assert counts == (4, 4)
    assert "1 of 2" in shown
    assert len({e.fields["tokens"] for e in examples(output)}) == 4
    assert label(model, raw, output, number=3) == ("", (4, 4))


def test_labelling_goes_on_in_tables(tmp_path):
    model = classifier(tmp_path / "model")
    (tmp_path / "raw.txt").write_text("我食飯\n你飲茶, 今日\n去街", encoding="utf-8")
    output = tmp_path / "o.csv"
    for lines in (("statement", "q"), ("question", "", "q"), ("praise", "", ""), ()):
        shown, counts = label(model, tmp_path / "raw.txt", output, *lines)
        if lines[:1] == ("praise",):
            assert "'praise' is not among the 2 labels of the model, such as question, statement" in shown
    assert counts == (3, 3)
    header, *rows = output.read_text(encoding="utf-8").splitlines()
    assert header == "text,label"
    assert rows[0].endswith(",question")
    output.write_text("label,text\nstatement,我\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"o.csv:1: columns label,text, expected text,label, or a new file"):
        label(model, tmp_path / "raw.txt", output)  # before anything is typed


def test_classes_that_are_numbers(tmp_path):
    model = classifier(tmp_path / "model", ["0", "1"])
    (tmp_path / "raw.txt").write_text("我食飯", encoding="utf-8")
    shown, _ = label(model, tmp_path / "raw.txt", tmp_path / "o.jsonl", "1", "")
    assert json.loads((tmp_path / "o.jsonl").read_text(encoding="utf-8")) == {"text": "我食飯", "label": 1}
    assert "→" in shown


def test_a_file_whose_ending_says_nothing_has_its_name(model, raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert label(model, raw, tmp_path / "o.txt", "", "q")[1] == (1, 4)
    assert {path.name for path in tmp_path.iterdir()} == {"raw.txt", "o.txt"}
    assert len(examples(tmp_path / "o.txt")) == 1
    assert label(model, raw, tmp_path / "o.txt", "", "q")[1] == (2, 4)


def test_labelling_refuses_what_could_not_be_written_before_anything_is_typed(model, tmp_path):
    pool = tmp_path / "pool.jsonl"
    lines = [json.dumps({"tokens": tokens}) for tokens in (["我"], ["你"], ["佢\n食"])]
    pool.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"pool.jsonl:3: .* cannot be written as conll"):
        label(model, pool, tmp_path / "o.conll")


@pytest.mark.parametrize("command", ["u", "q"])
def test_labelling_refuses_a_class_that_is_a_command(tmp_path, command):
    model = classifier(tmp_path / "model", ["a", command])
    (tmp_path / "raw.txt").write_text("我食飯", encoding="utf-8")
    with pytest.raises(UserError, match=f"--label: the model has a class '{command}', which is a command"):
        label(model, tmp_path / "raw.txt", tmp_path / "o.jsonl")


def test_labelling_refuses_a_file_of_another_kind(model, raw, tmp_path):
    (tmp_path / "o.conll").write_text("我 B-n x\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"o.conll:1: 3 columns, expected 2 \(token, tag\)"):
        label(model, raw, tmp_path / "o.conll", "")


def test_a_full_disk_keeps_what_was_saved(model, raw, tmp_path):
    with mounted(tmp_path / "disk", 1_000_000) as disk:
        output = disk / "o.conll"
        label(model, raw, output, "", "q")
        before = output.read_text(encoding="utf-8")
        fill(disk)
        with pytest.raises(UserError, match=r"o.conll cannot be written \(No space left on device\)"):
            label(model, raw, output, "")
        assert output.read_text(encoding="utf-8") == before


def test_marks_from_right_to_left_and_markup_are_shown_as_they_are(model, tmp_path):
    (tmp_path / "raw.txt").write_text("[b]我\x1b[31m שלום", encoding="utf-8")
    shown, _ = label(model, tmp_path / "raw.txt", tmp_path / "o.conll", "")
    rows = [line.split() for line in shown.splitlines() if line[:1].isdigit() and " of " not in line]
    assert [row[-1] for row in rows] == [*"[b]我", "\\x1b", *"[31mשלום"]  # the token is last in its row


@pytest.mark.slow
def test_ctrl_c_leaves_what_is_done(model, raw, tmp_path):
    # What a shell starts in the background ignores SIGINT, and hands that down.
    program = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "runpy.run_module('fangyan', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", program, "select", model, "--input", raw, "--label", "--output"]
    output = tmp_path / "o.conll"
    with subprocess.Popen(
        [*map(str, command), str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdin.write("\n\n")
        process.stdin.flush()
        while not output.exists() or len(examples(output)) < 2:
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert len(examples(output)) == 2


def test_select_label_by_the_command(model, raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\nq\n")))
    output = Path(tmp_path / "o.conll")
    app(
        ["select", str(model), "--input", str(raw), "--label", "--output", str(output)], standalone_mode=False
    )
    assert f"fangyan: 2 of 4 labelled in {output}\n" in capsys.readouterr().err
    assert len(examples(output)) == 2
