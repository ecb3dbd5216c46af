"""CoNLL columns as people really have them: read right, written back byte for byte, or refused by line."""

import time

import pytest
from fangyan.data.example import Annotation
from fangyan.data.formats import parse_data
from fangyan.data.formats.conll import put, split
from fangyan.errors import UserError
from hypothesis import example, given, settings
from hypothesis import strategies as st

XSID = """\
# id: 1
# text: Zoag ma olle Erinnarunga
# text-en = show all reminders
# intent = reminder/show_reminders
1\tZoag\treminder/show_reminders\tO
2\t#olle\treminder/show_reminders\tB-reference

# id: 2
1\t#\tweather/find\tO
"""
GERMEVAL = """\
#\thttp://de.wikipedia.org/wiki/Return_to_Forever_(Album)\t[2009-03-29]\t
1\t–\tO\tO
3\t#\tO\tO
4\tSometime\tB-OTH\tB-LOC

#\tswr.de vom 20.10.2005\t[2005-10-20]\t
1\tIm\tO\tO
"""
# Separators of a line, which no token may hold.
TEXT = st.text(st.characters(blacklist_characters="\t\n\r\0", blacklist_categories=["Cs"]), min_size=1)
WORD = TEXT.map(lambda text: text.replace(" ", "")).filter(bool)


def conll(**fields):
    return parse_data({"format": "conll", "train": "train.conll", **fields}, "test")


def write(folder, text, name="train.conll"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder, text, **fields):
    path = write(folder, text)
    return [(e.fields["tokens"], e.fields["tags"]) for e in conll(**fields).read(path)]


def annotated(data, path, tag, probabilities=None):
    """The file with ``tag(token)`` for every token."""

    def annotate(examples):
        for e in examples:
            assert "tags" not in e.fields
            tags = tuple(tag(token) for token in e.fields["tokens"])
            yield Annotation(tags, probabilities and (probabilities,) * len(tags))

    return "".join(data.annotate(path, annotate))


def test_conll_comments_of_a_tab_separated_file(tmp_path):
    assert read(tmp_path, XSID, columns={"token": 2, "tag": 4}) == [
        (("Zoag", "#olle"), ("O", "B-reference")),
        (("#",), ("O",)),
    ]


def test_conll_comments_that_have_tabs(tmp_path):
    columns = {"token": 2, "tag": 3}
    assert read(tmp_path, GERMEVAL, columns=columns)[0] == (("–", "#", "Sometime"), ("O", "O", "B-OTH"))
    assert len(read(tmp_path, GERMEVAL, columns=columns)) == 2


@pytest.mark.parametrize(("columns", "rest"), [(None, ""), ({"token": 1, "tag": 4}, " x y")])
def test_conll_comments_with_as_many_words_as_columns(tmp_path, columns, rest):
    """``# newpar`` is a comment in two columns, ``# sent_id = 1`` in four."""
    tag = f"{rest} N" if rest else " N"
    text = f"# newpar\n# sent_id = 1\n# text = So is\nSo{tag}\nis{tag}\n"
    assert read(tmp_path, text, columns=columns) == [(("So", "is"), ("N", "N"))]


@pytest.mark.parametrize("text", ["#\tPUNCT\nich\tPRON\n", "# PUNCT\nich PRON\n", "#\tPUNCT\n#ich\tPRON\n"])
def test_conll_hash_with_a_tag_is_a_token(tmp_path, text):
    ((tokens, tags),) = read(tmp_path, text)
    assert (tokens[0], tags) == ("#", ("PUNCT", "PRON"))


def test_conll_comment_at_the_top_of_a_file(tmp_path):
    assert read(tmp_path, "# Licence\n\na O\n\n# O\n") == [(("a",), ("O",)), (("#",), ("O",))]


def test_conll_unicode_spaces_belong_to_tokens(tmp_path):
    text = "10\u00a0000 NUM\n\u3000 PUNCT\na\u2028b  X\n"
    assert read(tmp_path, text) == [(("10\u00a0000", "\u3000", "a\u2028b"), ("NUM", "PUNCT", "X"))]


@pytest.mark.parametrize("token", [" ", "\u200b", "\u200d", "\u0301", "\ufe0f", "\ufeff", "\x1c", "\u0085"])
def test_conll_tokens_that_look_empty(tmp_path, token):
    text = f"我\tO\n{token}\tX\n去\tO\n"
    assert read(tmp_path, text) == [(("我", token, "去"), ("O", "X", "O"))]
    path = tmp_path / "train.conll"
    assert annotated(conll(), path, lambda token: "P") == text.replace("O\n", "P\n").replace("X\n", "P\n")


def test_conll_lines_that_end_in_a_separator(tmp_path):
    assert read(tmp_path, "a\tO\t\nb\tP\t\t\n\t\nc O \n") == [(("a", "b"), ("O", "P")), (("c",), ("O",))]


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("a\tO\nb\t\tO\n", {}, r"train.conll:2: 3 columns, expected 2 \(token, tag\).*found 'b\\t\\tO'"),
        ("a\tO\n#b\n", {}, "train.conll:2: 1 columns, expected 2"),
        ("a O\nNew York\tO\n", {}, "train.conll:2: a tab, but the sentence begins with spaces"),
        (
            "1\ta\tO\n2\t\tO\n",
            {"columns": {"token": 2, "tag": 3}},
            "conll:2: 3 columns, expected 3 or more",
        ),
        (
            "a x O\nNew York x O\n",
            {"columns": {"token": 1, "tag": 3}},
            "conll:2: 4 columns, expected 3 as bef",
        ),
        (
            "a\tO\nb\tO\rc\tO\n",
            {},
            "train.conll:2: a carriage return within the line, expected lines that",
        ),
        ("a\tO\nb\0\tO\n", {}, "train.conll:2: byte 2 is NUL, expected UTF-8 text"),
        ("a\tO\n".encode("utf-16"), {}, "train.conll:1: text in UTF-16, expected UTF-8"),
        ("a\tO\n".encode("utf-16-le"), {}, "train.conll:1: byte 2 is NUL"),
        (
            "nl:a\tO\nb\tO\n",
            {"token_prefix": "nl:"},
            "conll:2: token 'b', expected it to begin with 'nl:'",
        ),
    ],
)
def test_conll_refuses(tmp_path, text, fields, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text, **fields)


@pytest.mark.parametrize("columns", [{"tag": 2}, {"token": 1, "tag": 1}, {"token": 0, "tag": 1}, {"id": 1}])
def test_conll_refuses_columns(columns):
    with pytest.raises(UserError, match="test: data.columns"):
        conll(columns=columns)


def test_conll_separators_and_prefixes(tmp_path):
    assert read(tmp_path, "a;O\nb c;P;\n", separator=";") == [(("a", "b c"), ("O", "P"))]
    assert read(tmp_path, "nl:De\tO\nnl:nl:\tB-X\n", token_prefix="nl:") == [(("De", "nl:"), ("O", "B-X"))]


def test_conll_annotate_adds_a_column_where_there_is_none(tmp_path):
    path = write(tmp_path, "\ufeff# newpar\r\nNa\r\nund\r\n\r\n\r\n-DOCSTART-\r\nJo")
    assert annotated(conll(), path, str.upper) == (
        "\ufeff# newpar\r\nNa NA\r\nund UND\r\n\r\n\r\n-DOCSTART-\r\nJo JO"
    )
    path = write(tmp_path, "1\tNa\t\n2\tJo\tX\n")
    data = conll(columns={"token": 2, "tag": 4})
    assert annotated(data, path, str.upper) == "1\tNa\t\tNA\n2\tJo\tX\tJO\n"
    path = write(tmp_path, "1\tNa\n")  # of another format: no column is made up
    with pytest.raises(UserError, match="train.conll:1: 2 columns, expected 3 or more: token in 2, tag in 4"):
        annotated(data, path, str.upper)


def test_conll_annotate_keeps_tokens_with_spaces(tmp_path):
    """A line of a tab-separated sentence that has no tag yet, and a space in its token."""
    path = write(tmp_path, "a\tO\nfoo bar\nc\tO\n")
    assert annotated(conll(), path, str.upper) == "a\tA\nfoo bar\tFOO BAR\nc\tC\n"


def test_conll_annotate_with_probabilities(tmp_path):
    path = write(tmp_path, "Na O\n")
    assert annotated(conll(), path, str.upper, (("A", 0.75), ("B", 0.2))) == "Na NA A:0.7500 B:0.2000\n"


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(TEXT, WORD), min_size=1), st.sampled_from(["\n", "\r\n"]))
@example([("#", "O"), ("# a = b", "O")], "\n")
def test_conll_reads_what_was_written_with_tabs(tmp_path_factory, rows, end):
    folder = tmp_path_factory.mktemp("conll")
    text = "a\tO" + end + "".join(f"{token}\t{tag}{end}" for token, tag in rows)
    ((tokens, tags),) = read(folder, text, separator="\t")
    assert list(zip(tokens, tags, strict=True)) == [("a", "O"), *rows]
    perfect = iter(tags)
    assert annotated(conll(separator="\t"), folder / "train.conll", lambda token: next(perfect)) == text


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(WORD, WORD, WORD), min_size=1), st.integers(1, 3))
def test_conll_reads_what_was_written_with_spaces(tmp_path_factory, rows, spaces):
    folder = tmp_path_factory.mktemp("conll")
    text = "a b O\n" + "".join((" " * spaces).join(row) + "\n" for row in rows)
    columns = {"token": 1, "tag": 3}
    ((tokens, tags),) = read(folder, text, columns=columns)
    assert list(zip(tokens, tags, strict=True)) == [("a", "O"), *((token, tag) for token, _, tag in rows)]
    perfect = iter(tags)
    assert annotated(conll(columns=columns), folder / "train.conll", lambda token: next(perfect)) == text


@given(st.lists(WORD, min_size=1, max_size=4), st.sampled_from(["\t", " ", ";"]), st.integers(0, 3), WORD)
def test_put_changes_one_column(cells, separator, column, value):
    cells = [cell.replace(";", ",") for cell in cells]
    value = value.replace(";", ",")
    column = min(column, len(cells))
    wanted = [*cells[:column], value, *cells[column + 1 :]]
    assert split(put(separator.join(cells), separator, column, value), separator) == wanted


def test_conll_long_sentences_and_tokens_take_linear_time(tmp_path):
    def seconds(tokens, letters):
        write(tmp_path, f"{'ə' * letters}\tO\n" * tokens)
        start = time.process_time()
        ((read_tokens, _),) = read(tmp_path, f"{'ə' * letters}\tO\n" * tokens)
        assert (len(read_tokens), len(read_tokens[0])) == (tokens, letters)
        return time.process_time() - start

    assert seconds(20_000, 5) < 5
    assert seconds(2, 5_000) < 1


@pytest.mark.parametrize("columns", [{"token": 2, "tag": 4}, {"token": 4, "tag": 2}])
def test_annotate_a_line_whose_token_is_empty(tmp_path, columns):
    """Empty columns at the end are as good as none."""
    path = tmp_path / "a.tsv"
    path.write_text("ax\tb\t\t\n".replace("b", "" if columns["token"] == 2 else "b"), encoding="utf-8")
    data = parse_data({"format": "conll", "train": str(path), "columns": columns}, "test")
    with pytest.raises(UserError, match="a.tsv:1: . columns, expected "):
        list(data.annotate(path, lambda examples: (Annotation(("x",)) for _ in examples)))
