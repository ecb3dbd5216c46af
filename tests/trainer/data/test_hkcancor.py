"""The real corpus, whole."""

from collections import Counter

import pytest
from fangyan.data import load_parts
from fangyan.data.hkcancor import corpus_folder, read_conversation
from fangyan.errors import UserError
from fangyan.recipe import Data

TEST = ["FC-025_v", "FC-055_v2", "FC-104_v2", "FC-106b_v2", "FC-109a_v2", "FC-R002b_v2"]


def test_all_of_it():
    files = sorted(corpus_folder().glob("*.cha"))
    words = [example for path in files for example in read_conversation(path, characters=False)]
    assert len(files) == 58
    assert len(words) == 16_162
    assert sum(len(example.tokens) for example in words) == 153_656
    tags = Counter(tag for example in words for tag in example.tags)
    assert len(tags) == 94
    assert tags["w"] == 28_263  # punctuation
    assert "" not in tags


def test_characters_join_to_the_same_words():
    path = corpus_folder() / "FC-025_v.cha"
    words, characters = (read_conversation(path, flag) for flag in (False, True))
    assert len(words) == len(characters)
    for left, right in zip(words, characters, strict=True):
        assert "".join(left.tokens) == "".join(right.tokens)
        assert tuple(tag[2:] for tag in right.tags if tag.startswith("B-")) == left.tags
    assert words[0].tokens == ("你", "講", "吖", ".")
    assert words[0].tags == ("r", "v", "y", "w")


def test_the_default_split():
    parts = load_parts(Data(format="hkcancor", tokens="characters", dev=["FC-048_v2"], test=TEST), seed=0)
    assert len(parts["test"]) == 2_128
    groups = {name: {example.group for example in part} for name, part in parts.items()}
    assert len(groups["train"]) == 51
    assert not groups["train"] & (groups["dev"] | groups["test"])


def test_fractions_are_whole_conversations():
    parts = load_parts(Data(format="hkcancor", dev=0.1, test=0.1), seed=3)
    groups = [{example.group for example in part} for part in parts.values()]
    assert sum(map(len, groups)) == 58
    assert 0.1 * 16_162 <= len(parts["dev"]) < 0.2 * 16_162


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": ["FC-999"]}, "data.test: no conversation 'FC-999' in"),
        (
            {"train": ["FC-025_v"], "dev": ["FC-025_v"]},
            "data.train: conversation 'FC-025_v' is also held out",
        ),
    ],
)
def test_conversations_that_do_not_fit(change, message):
    with pytest.raises(UserError, match=message):
        load_parts(Data(format="hkcancor", **change), seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*A:\t你 好 .\n%mor:\tr|nei5 a|hou2\n", r"x.cha:1: 3 words but 2 tags on the %mor: line"),
        ("@Begin\n%mor:\tr|nei5\n", r"x.cha:2: a %mor: line with no speaker line"),
    ],
)
def test_damaged_files(tmp_path, text, message):
    path = tmp_path / "x.cha"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_conversation(path, characters=True)
    with pytest.raises(UserError, match="no .cha file in it"):
        load_parts(Data(format="hkcancor", path=str(tmp_path / "empty")), seed=0)
