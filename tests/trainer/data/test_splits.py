"""Folds for cross-validation: drawn by group and seed."""

import pytest
from fangyan.data.formats.conll import Conll
from fangyan.errors import UserError


def test_folds_are_drawn_by_group_and_seed(tmp_path):
    """Every example is in one fold, with all of its group, and folds are of nearly equal size."""
    path = tmp_path / "train.conll"
    path.write_text("".join(f"{c}\tn\n\n" for c in "甲乙丙丁戊己庚辛壬癸甲甲乙"), encoding="utf-8")

    def folds(seed):
        splits = [Conll(train=str(path), fold=f"{k}/4").load(seed) for k in range(1, 5)]
        assert all(len(split["train"]) + len(split["dev"]) + len(split["test"]) == 13 for split in splits)
        return [sorted(example.source for example in split["test"]) for split in splits]

    first = folds(0)
    assert sorted(source for fold in first for source in fold) == sorted(
        f"{path}:{2 * i + 1}" for i in range(13)
    )
    assert sorted(map(len, first)) == [3, 3, 3, 4]
    same = [{f"{path}:{line}" for line in lines} for lines in ((1, 21, 23), (3, 25))]
    for group in same:
        assert sum(bool(group & set(fold)) for fold in first) == 1
    assert folds(0) == first
    assert folds(1) != first


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fold": "5/4"}, "fold is 5/4, expected k/n with k from 1 to n"),
        ({"fold": "1/1"}, "and n of 2 or more"),
        ({"fold": "1/4", "test": 0.1}, r"test is given, and --folds \(fold\) takes a part of train for it"),
    ],
)
def test_folds_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        Conll(train="x.conll", **fields)


def test_more_folds_than_groups(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("甲\tn\n\n乙\tn\n\n" * 5, encoding="utf-8")
    with pytest.raises(UserError, match="data.fold: 3 folds of 2 groups that are kept together"):
        Conll(train=str(path), fold="1/3").load(0)
