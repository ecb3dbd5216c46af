"""Tag sets, schemes, and tags outside them."""

import numpy as np
import pytest
from fangyan.data.example import Example
from fangyan.data.formats.conll import Conll
from fangyan.data.formats.jsonl import Jsonl
from fangyan.data.tokenization import IGNORE_INDEX
from fangyan.errors import UserError
from fangyan.tasks.token_classification.config import TokenClassificationConfig
from fangyan.tasks.token_classification.outputs import SpanOutput
from fangyan.tasks.token_classification.scheme import Notation
from fangyan.tasks.token_classification.task import TokenClassification


def example(tags, source="x.conll:7"):
    return Example({"tokens": tuple("字" * len(tags)), "tags": tuple(tags)}, source, "g")


def test_fit_has_both_prefixes_of_every_tag():
    splits = {"train": [example(["B-n", "B-v"])], "dev": [example(["B-u"])]}
    task = TokenClassificationConfig().fit(splits)
    assert task.scheme == "segmentation"
    assert task.labels == ["B-n", "I-n", "B-u", "I-u", "B-v", "I-v"]
    assert task.primary_metric == "joint_f1"
    assert "tags that never occur in train: B-u" in map(str, task.findings(splits))


def test_fit_of_entities():
    task = TokenClassificationConfig().fit({"train": [example(["O", "B-PER"])]})
    assert task.labels == ["O", "B-PER", "I-PER"]
    assert set(task.metric_names) == {"token_accuracy", "entity_precision", "entity_recall", "entity_f1"}
    assert task.primary_metric == "entity_f1"


def test_classes_of_a_tag_outside_the_tag_set():
    """Train needs every tag of its own; elsewhere such a tag is scored as an error."""
    config = TokenClassificationConfig(labels=["n", "v"], scheme="plain")
    data = Conll(train="x.conll")
    message = r"x.conll:7: tag 'adj' at token '字' is not in the tag set of 2: n, v"
    with pytest.raises(UserError, match=message):
        config.build({"train": [example(["n", "adj"])], "dev": [example(["n"])]}, data)
    splits = {"train": [example(["n"])], "dev": [example(["n", "adj"])]}
    task = config.build(splits, data)
    assert "tags that never occur in train: adj" in map(str, task.findings(splits))
    assert task.classes(example(["v", "n", "adj"])) == [1, 0, IGNORE_INDEX]


@pytest.mark.parametrize(
    ("learned", "evaluated", "metric"),
    [
        (["NOUN", "VERB"], ["NOUN", "INTJ"], "token_accuracy"),
        (["O", "B-PER", "O"], ["B-PER", "O", "B-LOC"], "entity_recall"),
        (["B-n", "I-n"], ["B-n", "B-u"], "pos_accuracy"),
        (["O", "PER", "O"], ["PER", "O", "LOC"], "entity_recall"),
    ],
)
def test_metrics_of_a_tag_that_was_not_learned(learned, evaluated, metric):
    """It is an error, whatever the model says there, with a note; and shifts no other token's tag."""
    task = TokenClassificationConfig().fit({"train": [example(learned)]})
    unseen = example(evaluated, "y.conll:3")
    classes = task.classes(unseen)
    assert min(classes[:-1]) >= 0
    assert classes[-1] == IGNORE_INDEX
    notes = task.notes([example(learned), unseen])
    assert len(notes) == 1
    assert f"scored as errors: {evaluated[-1]} (1, first in y.conll:3)" in notes[0]
    for other in range(len(task.labels)):
        outputs = [SpanOutput(0, 0, [*classes[:-1], other])]
        assert task.metrics([unseen], outputs)[metric] == 50.0
    assert task.notes([example(learned)]) == []


CASE_4 = ["I-ORG O I-MISC O", "I-PER I-LOC B-LOC"]


def task_of(sentences, **settings):
    examples = [example(tags.split(), f"x.conll:{1 + 10 * i}") for i, tags in enumerate(sentences)]
    return TokenClassificationConfig(**settings).fit({"train": examples}, line_per_token=True), examples


@pytest.mark.parametrize(
    ("sentences", "labels", "style"),
    [
        (CASE_4, [["B-ORG", "O", "B-MISC", "O"], ["B-PER", "B-LOC", "B-LOC"]], "iob1"),
        (["B-LOC E-LOC S-PER O"], [["B-LOC", "I-LOC", "B-PER", "O"]], "iobes"),
        (["B-LOC L-LOC U-PER O"], [["B-LOC", "I-LOC", "B-PER", "O"]], "bilou"),
        (["B-LOC M-LOC E-LOC S-PER O"], [["B-LOC", "I-LOC", "I-LOC", "B-PER", "O"]], "bmes"),
        (["B_LOC I_LOC O B_PER"], [["B-LOC", "I-LOC", "O", "B-PER"]], "iob2"),
        (["LOC-B LOC-I O PER-B"], [["B-LOC", "I-LOC", "O", "B-PER"]], "iob2"),
        (["O LOC LOC O O PER O"], [["O", "B-LOC", "I-LOC", "O", "O", "B-PER", "O"]], "io"),
        (["B-LOC I-LOC O B-PER"], [["B-LOC", "I-LOC", "O", "B-PER"]], "iob2"),
    ],
)
def test_metrics_of_a_perfect_model_are_100_in_every_scheme(sentences, labels, style):
    task, examples = task_of(sentences)
    assert (task.scheme, task.notation.style) == ("iob2", style)
    assert [task.read(example) for example in examples] == labels
    outputs = [SpanOutput(i, 0, task.classes(example)) for i, example in enumerate(examples)]
    metrics = task.metrics(examples, outputs)
    assert {metrics["entity_f1"], metrics["token_accuracy"]} == {100.0}
    written = [" ".join(task.notation.write(tags)) for tags in task.join(outputs, len(examples))]
    assert written == sentences


@pytest.mark.parametrize(
    ("sentences", "predicted", "recall"),
    [
        (CASE_4, ["O O O O", "O O B-LOC"], 20.0),
        (["I-PER I-PER O I-LOC", "I-PER B-PER O O"], ["B-PER O O B-LOC", "B-PER B-PER O O"], 75.0),
        (["B-LOC I-LOC O", "B-PER O O"], ["B-LOC O O", "B-PER O O"], 50.0),
    ],
)
def test_metrics_of_a_model_that_never_predicts_inside(sentences, predicted, recall):
    """Read as IOB2, IOB1 has entities only where there is a B-, and a model of O and B- scores 100."""
    task, examples = task_of(sentences)
    outputs = [
        SpanOutput(i, 0, task.classes(Example({"tokens": tags.split(), "tags": tags.split()}, "", "")))
        for i, tags in enumerate(predicted)
    ]
    metrics = task.metrics(examples, outputs)
    assert metrics["entity_recall"] == pytest.approx(recall)
    assert metrics["entity_f1"] < 100.0


def test_warnings_name_the_lines_of_broken_rules(tmp_path):
    lines = ["a B-x", "b I-x", "c O", "d I-x", "", "e I-y", "f B-y", "g I-x"]
    (tmp_path / "t.conll").write_text("\n".join(lines), encoding="utf-8")
    data = Conll(train=str(tmp_path / "t.conll"))
    examples = data.read_files([str(tmp_path / "t.conll")])
    splits = {"train": examples, "dev": []}
    task = TokenClassificationConfig(scheme="iob2").build(splits, data)
    path = tmp_path / "t.conll"
    assert str(next(iter(task.findings(splits)))) == (
        f"3 tags break a rule of IOB2: {path}:4 (I-x after O), {path}:6 (I-y begins the sentence), "
        f"{path}:8 (I-x after B-y); read as conlleval does: what continues nothing begins a span"
    )
    assert task.read(examples[1]) == ["B-y", "B-y", "B-x"]
    (tmp_path / "t.jsonl").write_text('\n{"tokens": ["a", "b"], "tags": ["O", "I-x"]}', encoding="utf-8")
    data = Jsonl(train=str(tmp_path / "t.jsonl"))
    splits = {"train": data.read_files([data.train])}
    task = TokenClassificationConfig(scheme="iob2").build(splits, data)
    assert str(next(iter(task.findings(splits)))).startswith(
        f"1 tag breaks a rule of IOB2: {tmp_path / 't.jsonl'}:2 (token 2) (I-x after O); "
    )


def test_tag_sets_that_are_refused():
    message = (
        r"x.conll:11: tag 'LOC' at token '字' is not of scheme IOB2, expected B, I before '-' and a type"
    )
    with pytest.raises(UserError, match=message):
        task_of(["B-LOC I-LOC O", "LOC O"])
    assert task_of(["B-LOC I-LOC O", "LOC O"], scheme="plain")[0].scheme == "plain"
    with pytest.raises(UserError, match=r"x.conll:1: tag 'S-x' .* not of scheme IOB2, expected B, I before"):
        task_of(["B-x I-x S-x O"], scheme="iob2")
    with pytest.raises(UserError, match=r"tag 'O' .* not of scheme segmentation, expected B, I before"):
        task_of(["B-x I-x O"], scheme="segmentation")
    with pytest.raises(UserError, match=r"task.labels: 'y' is not of scheme IOBES, expected B, I, E, S "):
        task_of(["S-x S-x O"], scheme="iobes", labels=["S-x", "O", "y"])
    with pytest.raises(UserError, match="data.train: all of its 2 tags are O, expected something to learn"):
        task_of(["O O"])


def test_labels_of_the_recipe_are_a_tag_set_in_the_scheme_of_the_file():
    assert task_of(["B-x O"], labels=["O", "B-x", "I-x"])[0].labels == ["O", "B-x", "I-x"]
    task, _ = task_of(["S-x O B-x E-x"], labels=["S-y", "S-x", "B-x", "E-x", "O"])
    assert task.labels == ["O", "B-x", "I-x", "B-y", "I-y"]
    assert task_of(["v n"], labels=["v", "n", "u"])[0].labels == ["v", "n", "u"]


class Exported:
    def __init__(self):
        self.num_labels, self.id2label = 3, dict(enumerate(["O", "B-LOC", "I-LOC"]))


def test_from_export_is_the_task_that_was_exported():
    notation = Notation("bilou", "_", prefix_last=True)
    task = TokenClassification(["O", "B-LOC", "I-LOC"], "iob2", "characters", notation, "last")
    assert task.model_kwargs()["id2label"] == Exported().id2label
    again = TokenClassificationConfig.from_export(task.export_config(), Exported())
    for name in ("labels", "scheme", "token_unit", "notation", "subword"):
        assert getattr(again, name) == getattr(task, name)


def test_from_export_of_what_says_less():
    config = TokenClassification(["O", "B-LOC", "I-LOC"], "iob2").export_config()
    del config["subword"]
    with pytest.raises(ValueError, match="fangyan has no field 'subword', expected a whole export"):
        TokenClassificationConfig.from_export(config, Exported())
    config |= {"subword": "first", "notation": {"style": "iobx"}}
    with pytest.raises(ValueError, match="notation is {'style': 'iobx'}, expected style, separator, "):
        TokenClassificationConfig.from_export(config, Exported())


def test_join_decodes_a_long_sentence_whole():
    """Its sequences' log-probabilities come in any order, beside sentences that are decoded already."""
    task = TokenClassification(["O", "B-x", "I-x"], "iob2")
    whole = np.log(np.random.default_rng(0).dirichlet(np.ones(3), 9)).astype(np.float32)
    spans = [SpanOutput(1, start, None, whole[start:end]) for start, end in ((5, 9), (0, 3), (3, 5))]
    found = task.join([spans[0], SpanOutput(0, 0, [0, 1]), *spans[1:]], 3)
    (expected,) = task.join([SpanOutput(0, 0, None, whole)], 1)
    assert found == [("O", "B-x"), expected, ()]
