"""CoNLL-U in and out: words and tags of any column, every other byte untouched."""

import pytest
from fangyan.data.example import Annotation
from fangyan.data.formats import parse_data
from fangyan.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

# A multi-word token, an empty node, comments, blank lines and line ends of both kinds.
TREEBANK = (
    "# newdoc id = a\n"
    "# sent_id = 1\n"
    "# text = Zum «Haus» 10\u00a0000.\n"
    "1-2\tZum\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No\n"
    "1\tZu\tzu\tADP\tAPPR\t_\t3\tcase\t_\t_\n"
    "2\tdem\tder\tDET\tART\tCase=Dat|Gender=Neut\t3\tdet\t_\tGloss=the\n"
    "3\tHaus\tHaus\tNOUN\tNN\tCase=Dat\t0\troot\t_\tNER=B-LOC|SpaceAfter=No\n"
    "3.1\tist\tsein\tAUX\t_\t_\t_\t_\t0:root\tCopyOf=3\n"
    "4\t10\u00a0000\t10\tNUM\tCARD\t_\t3\tnummod\t_\tSpaceAfter=No\n"
    "5\t.\t.\tPUNCT\t$.\t_\t3\tpunct\t_\t_\n"
    "\n\n"
    "# sent_id=2\r\n"
    "1\tJo\tjo\tINTJ\tITJ\t_\t0\troot\t_\t_\r\n"
)
TAGS = {
    "upos": ("ADP", "DET", "NOUN", "NUM", "PUNCT"),
    "xpos": ("APPR", "ART", "NN", "CARD", "$."),
    "deprel": ("case", "det", "root", "nummod", "punct"),
    "feats": ("_", "Case=Dat|Gender=Neut", "Case=Dat", "_", "_"),
    "feats.Case": ("_", "Dat", "Dat", "_", "_"),
    "misc.NER": ("O", "O", "B-LOC", "O", "O"),
}
VALUE = st.text(st.characters(blacklist_characters="\t\n\r\0|= ", blacklist_categories=["Cs"]), min_size=1)


def conllu(column="upos"):
    return parse_data({"format": "conllu", "train": "train.conllu", "column": column}, "test")


def write(folder, text):
    path = folder / "train.conllu"
    path.write_bytes(text.encode())
    return path


def annotated(column, path, tags, probabilities=None):
    stream = iter(tags)

    def annotate(examples):
        for example in examples:
            tags = tuple(next(stream) for _ in example.fields["tokens"])
            yield Annotation(tags, probabilities and (probabilities,) * len(tags))

    return "".join(conllu(column).annotate(path, annotate))


@pytest.mark.parametrize("column", TAGS)
def test_conllu_read(tmp_path, column):
    path = write(tmp_path, TREEBANK)
    first, second = conllu(column).read(path)
    assert first.fields["tokens"] == ("Zu", "dem", "Haus", "10\u00a0000", ".")
    assert first.fields["tags"] == TAGS[column]
    # Zu and dem are no pieces of Zum: each is a word. No space follows Zum.
    assert first.fields["spaces"] == (True, False, False, False, True)
    assert (first.source, second.source) == (f"{path}:4", f"{path}:14")


def test_conllu_read_pieces_of_a_token(tmp_path):
    lines = "1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n1\tdo\t_\tAUX{0}\n2\tn't\t_\tPART{0}\n3\tgo\t_\tVERB{0}\n"
    (example,) = conllu().read(write(tmp_path, lines.format("\t_" * 6)))
    assert example.fields["spaces"] == (False, True, True)


@pytest.mark.parametrize("column", TAGS)
def test_conllu_annotate_with_its_own_tags_changes_nothing(tmp_path, column):
    path = write(tmp_path, TREEBANK)
    tags = [tag for example in conllu(column).read(path) for tag in example.fields["tags"]]
    assert annotated(column, path, tags) == TREEBANK


@pytest.mark.parametrize(
    ("column", "tags", "changed"),
    [
        ("upos", "VVVVVV", [("\tADP\t", "\tV\t"), ("\tDET\t", "\tV\t"), ("\tINTJ\t", "\tV\t")]),
        ("feats.Case", ["Nom"] * 6, [("Case=Dat\t", "Case=Nom\t"), ("ADP\tAPPR\t_", "ADP\tAPPR\tCase=Nom")]),
        ("feats.Case", ["_"] * 6, [("Case=Dat|Gender=Neut", "Gender=Neut"), ("NN\tCase=Dat", "NN\t_")]),
        ("feats.Abbr", ["Yes"] * 6, [("Case=Dat|G", "Abbr=Yes|Case=Dat|G")]),
        (
            "misc.NER",
            ["O", "B-X", *"OOOO"],
            [("Gloss=the", "Gloss=the|NER=B-X"), ("NER=B-LOC", "NER=O")],
        ),
    ],
)
def test_conllu_annotate_changes_its_column_alone(tmp_path, column, tags, changed):
    written = annotated(column, write(tmp_path, TREEBANK), tags)
    for before, after in changed:
        assert before in TREEBANK
        assert after in written
    own = {"upos": 3, "feats": 5, "misc": 9}[column.partition(".")[0]]
    for before, after in zip(TREEBANK.splitlines(True), written.splitlines(True), strict=True):
        left, right = before.split("\t"), after.split("\t")
        assert left[:own] + left[own + 1 :] == right[:own] + right[own + 1 :] or own == 9
        if "\t" not in before or "-" in left[0] or "." in left[0]:
            assert before == after


def test_conllu_annotate_with_probabilities(tmp_path):
    written = annotated("upos", write(tmp_path, TREEBANK), "VVVVVV", (("V", 0.75), ("A|B", 0.125)))
    assert "\tGloss=the|Probabilities=V:0.7500,A\\pB:0.1250\n" in written
    assert written.endswith("\t_\tProbabilities=V:0.7500,A\\pB:0.1250\r\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# c\n1\ta\tX\n", "train.conllu:2: 3 columns, expected the 10 of CoNLL-U"),
        ("x" + "\t_" * 9 + "\n", "train.conllu:1: ID is 'x', expected such as 1, 1-2 or 1.1"),
        ("1" + "\t_" * 9 + "\n", "train.conllu:1: upos is _, which is none; expected a tag for '_'"),
        ("1" + "\tX" * 9 + "\n# c\n", "train.conllu:2: 1 columns, expected the 10"),
    ],
)
def test_conllu_refuses(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        list(conllu().read(write(tmp_path, text)))
    untagged = write(tmp_path, "1\tna" + "\t_" * 8 + "\n")
    for column in ("xpos", "deprel"):
        with pytest.raises(UserError, match=f"{column} is _, which is none; expected a tag for 'na'"):
            list(conllu(column).read(untagged))
    for column in (None, "lemma", "misc.", "feats.A|B"):
        with pytest.raises(UserError, match="test: data.column"):
            conllu(column)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(VALUE, VALUE), min_size=1), st.sampled_from(["xpos", "misc.ner", "feats.Key"]))
def test_conllu_reads_what_it_has_written(tmp_path_factory, rows, column):
    folder = tmp_path_factory.mktemp("conllu")
    rows = [(form, "x" if tag in ("_", "O") else tag) for form, tag in rows]
    lines = (f"{i}\t{form}" + "\t_" * 8 + "\n" for i, (form, _) in enumerate(rows, 1))
    path = write(folder, "".join(lines))
    written = annotated(column, path, [tag for _, tag in rows])
    (example,) = conllu(column).read(write(folder, written))
    assert list(zip(example.fields["tokens"], example.fields["tags"], strict=True)) == rows
