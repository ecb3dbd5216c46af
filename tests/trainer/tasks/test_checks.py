"""Checks that look at the first examples alone say so."""

from fangyan.data.example import Example
from fangyan.tasks import checks
from fangyan.tasks.token_classification import checks as tag_checks
from fangyan.tasks.token_classification.task import TokenClassification


def test_checks_of_the_first_examples_say_so(monkeypatch):
    train = [
        Example({"tokens": ("我",), "tags": (tag,)}, f"train:{i}", str(i)) for i, tag in enumerate("nnvnnn")
    ]
    task, splits = TokenClassification(["n", "v"], "plain"), {"train": train}
    copy = "of its 6 examples repeat another of them, such as train:1 (as train:0)"
    assert [str(finding) for finding in checks.copies(splits, task)] == [f"data.train: 5 {copy}"]
    different = "token 1 '我' is v, but n in the same sentence in train:0; sentences like this: 1"
    (found,) = (f for f in tag_checks.tag_findings(splits) if "same sentence" in f.message)
    assert found.message == different
    for module in (checks, tag_checks):
        monkeypatch.setattr(module, "COMPARED", 4)
    assert f"3 {copy.replace('6', 'first 4')}" in str(*checks.copies(splits, task))
    (found,) = (f for f in tag_checks.tag_findings(splits) if "same sentence" in f.message)
    assert found.message == f"{different} among the first 4"
