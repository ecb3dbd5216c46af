"""Tags of every scheme, against an encoder that knows nothing of ours: spans in, spans out."""

import pytest
from fangyan.data.example import Example
from fangyan.tasks.token_classification.recognition import TagPairs, broken_rule, recognise
from fangyan.tasks.token_classification.scheme import Notation
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, IOBES, Tokens

SEQEVALS = {"iob1": IOB1, "iob2": IOB2, "iobes": IOBES}
LETTERS = {"iob1": "IIII", "iob2": "BIIB", "iobes": "BIES", "bilou": "BILU", "bmes": "BMES"}
LAYOUTS = [(separator, last) for separator in "-_:/|" for last in (False, True)] + [("", False)]
# A type is any text: it may hold separators, prefixes and characters of any script.
types = st.text(st.characters(exclude_categories=("Cs", "Zs", "Zl", "Zp", "Cc")), min_size=1, max_size=6)


@st.composite
def sentences(draw, words=False, one_type=False):
    """Sentences as spans of (start, end, type) and their number of tokens; words leave no gap."""
    kinds = ["_"] if one_type else draw(st.lists(types, min_size=1, max_size=3, unique=True))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        spans, end = [], 0
        for _ in range(draw(st.integers(1, 5))):
            start = end + (0 if words else draw(st.integers(0, 2)))
            end = start + draw(st.integers(1, 4))
            spans.append((start, end, draw(st.sampled_from(kinds))))
        found.append((spans, end + (0 if words else draw(st.integers(0, 2)))))
    return found


def encode(spans, length, style, separator, last):
    """Spans as tags, span by span."""
    tags = ["O"] * length
    for i, (start, end, kind) in enumerate(spans):
        begin, inside, final, single = LETTERS[style]
        if style == "iob1" and i and spans[i - 1][1:] == (start, kind):
            begin = single = "B"
        letters = [single] if end - start == 1 else [begin, *inside * (end - start - 2), final]
        for t, letter in zip(range(start, end), letters, strict=True):
            name = [letter] if not separator else [kind, letter] if last else [letter, kind]
            tags[t] = separator.join(name)
    return tags


def spans_of(labels):
    """The spans of IOB2, by hand."""
    spans = []
    for i, label in enumerate(labels):
        if label.startswith("B-"):
            spans.append([i, i + 1, label[2:]])
        elif label.startswith("I-"):
            assert spans[-1][1:] == [i, label[2:]]
            spans[-1][1] += 1
    return [tuple(span) for span in spans]


@given(st.sampled_from(list(LETTERS)), st.sampled_from(LAYOUTS), st.data())
def test_read_and_write_are_inverse(style, layout, data):
    notation = Notation(style, *layout)
    for spans, length in data.draw(sentences(one_type=not layout[0])):
        tags = encode(spans, length, style, *layout)
        labels = notation.read(tags, "iob2")
        assert spans_of(labels) == spans
        assert notation.write(labels) == tags
        pairs = zip([None, *tags], [*tags, None], strict=True)
        assert not [rule for pair in pairs if (rule := broken_rule(pair, notation, "iob2"))]


@given(st.sampled_from(["iob2", "iobes", "bilou", "bmes"]), sentences(words=True))
def test_read_and_write_of_words(style, found):
    notation = Notation(style)
    for spans, length in found:
        tags = encode(spans, length, style, "-", False)
        labels = notation.read(tags, "segmentation")
        assert spans_of(labels) == spans
        assert notation.write(labels) == tags


@given(st.lists(st.one_of(st.just("O"), types), max_size=12))
def test_read_of_types_without_prefixes(tags):
    """Neighbours of one type are one entity: there the spans are the longest runs."""
    notation = Notation("io")
    labels = notation.read(tags, "iob2")
    assert notation.write(labels) == tags
    runs = [i for i, tag in enumerate(tags) if tag != "O" and (i == 0 or tags[i - 1] != tag)]
    assert [start for start, _, _ in spans_of(labels)] == runs


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("style", LETTERS)
def test_recognise_finds_every_scheme(style, layout):
    """From a few sentences that have every kind of span."""
    kinds = "__" if not layout[0] else "xy"
    spans = [(0, 1, kinds[0]), (1, 3, kinds[0]), (3, 6, kinds[1]), (8, 9, kinds[1]), (10, 12, kinds[0])]
    for outside in (False, True):
        if not outside and (style == "iob1" or layout[0] == ""):
            continue
        shown = spans if outside else spans[:3]
        tags = encode(shown, 13 if outside else 6, style, *layout)
        pairs = TagPairs.of([Example({"tokens": tuple(tags), "tags": tuple(tags)}, "x:1", "")])
        found = recognise(pairs, "auto")
        assert found.notation == Notation(style, *layout)
        assert found.scheme == ("iob2" if outside else "segmentation")
        assert bool(found.message) == (found.notation != Notation("iob2"))
        if outside:
            assert recognise(pairs, style).notation == Notation(style, *layout)


@pytest.mark.parametrize(
    ("tags", "scheme", "style"),
    [
        ("NOUN VERB ADP", "plain", "plain"),
        ("n v o n", "plain", "plain"),
        ("N V O N N", "plain", "plain"),  # Gimpel et al. 2011 have a part of speech O
        ("O PER O O LOC", "iob2", "io"),
        ("B S N", "plain", "plain"),
        ("S O S O O", "iob2", "io"),
        ("B E S B M E", "segmentation", "bmes"),
        ("B I B I I", "segmentation", "iob2"),
        ("B I O O B", "iob2", "iob2"),
        ("I-x O I-y O", "iob2", "iob1"),
        ("B-x O B-x O", "iob2", "iob2"),
        ("S-x O S-y O", "iob2", "iobes"),
        ("U-x O O", "iob2", "bilou"),
    ],
)
def test_recognise_of_tag_sets_that_say_little(tags, scheme, style):
    tags = tuple(tags.split())
    found = recognise(TagPairs.of([Example({"tokens": tags, "tags": tags}, "x:1", "")]), "auto")
    assert (found.scheme, found.notation.style) == (scheme, style)
    # Whatever may be meant otherwise is said.
    assert bool(found.message) == (("O" in tags and style != "iob2") or found.notation.separator == "")


def test_recognise_of_a_scheme_that_is_named_needs_no_proof():
    """A few tags say too little of what they are; the recipe says it."""
    for wanted, tags in (
        ("iob1", ("I-x", "I-y")),
        ("iobes", ("S-x", "S-y")),
        ("segmentation", ("I-x", "I-y")),
    ):
        pairs = TagPairs.of([Example({"tokens": tags, "tags": tags}, "x:1", "")])
        assert recognise(pairs, "auto").scheme == "plain"
        style = "iob2" if wanted == "segmentation" else wanted
        assert recognise(pairs, wanted).notation == Notation(style)


@given(st.sampled_from(list(SEQEVALS)), sentences())
def test_read_is_seqevals_reading(style, found):
    """Where the tags keep the rules, its strict one."""
    for spans, length in found:
        tags = encode([(s, e, "xyz"[len(k) % 3]) for s, e, k in spans], length, style, "-", False)
        expected = [(e.start, e.end, e.tag) for e in Tokens(tags, SEQEVALS[style]).entities]
        assert spans_of(Notation(style).read(tags, "iob2")) == expected


@given(st.lists(st.sampled_from(["O", *(f"{p}-{k}" for p in "BIES" for k in "xy")]), max_size=12))
def test_read_of_broken_rules_is_conllevals_reading(tags):
    """seqeval's lenient mode is conlleval's. What it reads as spans is told by the rules, or keeps them."""
    notation = Notation("iobes")
    expected = [(start, end + 1, kind) for kind, start, end in get_entities(tags)]
    labels = notation.read(tags, "iob2")
    assert spans_of(labels) == expected
    pairs = zip([None, *tags], [*tags, None], strict=True)
    broken = any(broken_rule(pair, notation, "iob2") for pair in pairs)
    assert broken == (notation.write(labels) != tags)
