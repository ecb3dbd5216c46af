"""CHAT transcripts: the words that a tier is aligned with."""

import pytest
from fangyan.data.formats import parse_data
from fangyan.data.formats.chat import aligned_words
from fangyan.errors import UserError

EVE = (
    "@UTF8\n@Begin\n"
    "*CHI:\tI want &-um <a dog> [/] a\n\tcookie . [+ IMP] \x15100_2000\x15\n"
    "%mor:\tpron|I verb|want-Fin det|a\n\tnoun|cookie .\n"
    "%gra:\t1|2|NSUBJ 2|5|ROOT 3|4|DET 4|2|OBJ 5|2|PUNCT\n"
    "*MOT:\twhat's xxx that ?\n"
    "%mor:\tpron|what~aux|be-Pres pron|that ?\n"
    "*MOT:\tno tier .\n"
    "@End\n"
)


def chat(**fields):
    return parse_data({"format": "chat", "train": "a.cha", **fields}, "test")


def read(folder, text, **fields):
    path = folder / "a.cha"
    path.write_text(text, encoding="utf-8")
    return list(chat(**fields).read(path))


def test_chat_read(tmp_path):
    first, second = read(tmp_path, EVE)
    assert first.fields == {
        "tokens": ("I", "want", "a", "cookie", "."),
        "tags": ("pron", "verb", "det", "noun", "."),
    }
    assert (first.source, first.group) == ("a.cha:3", "a")
    assert second.fields == {"tokens": ("what's", "that", "?"), "tags": ("pron~aux", "pron", "?")}


def test_chat_read_another_tier(tmp_path):
    (example,) = read(tmp_path, "*A:\t係 啊 .\n%pos:\tV Y PU\n", tier="pos", tokens="characters")
    assert example.fields == {"tokens": ("係", "啊", "."), "tags": ("B-V", "B-Y", "B-PU")}


@pytest.mark.parametrize(
    ("speech", "words"),
    [
        ("dat [: that] a handle [?] .", "dat a handle ."),
        ("I'm gonna [: going to] go +...", "I'm going to go +..."),
        ("<I want> [//] I need (.) 0det it@s:eng !", "I need it !"),
        ('+" (be)cause no: &=laughs www .', "because no ."),
        ("+< yes , Mommy ‡ yyy [=! cries] .", "yes , Mommy ‡ ."),
        ("<<a b> [/] a> [//] c [/] c", "c"),
        ("well [e] so", "so"),
    ],
)
def test_aligned_words(speech, words):
    assert aligned_words(speech) == words.split()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*A:\ta b .\n%mor:\tn|a .\n", r"a.cha:1: 3 words but 2 tags on the %mor: line"),
        (
            "*A:\tbank .\n%mor:\tn|bank^v|bank .\n",
            r"a.cha:2: n\|bank\^v\|bank leaves the choice of a tag open",
        ),
    ],
)
def test_chat_refuses(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)
