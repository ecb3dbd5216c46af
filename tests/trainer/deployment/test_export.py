"""Graphs: they answer as the run does, or are not written; and others run them without fangyan or PyTorch."""

import shutil
import subprocess
import sys
from collections import Counter

import fangyan
import numpy as np
import pytest
import tiny_exports
import torch
from fangyan.data.example import Example
from fangyan.data.packing import collate
from fangyan.data.splits import write_examples
from fangyan.data.tokenization import TokenizedSequence, Tokenizer
from fangyan.deployment import export as deployment
from fangyan.deployment.comparison import TOLERANCE, Agreement
from fangyan.deployment.export import check_format, export_graph
from fangyan.deployment.readme import _example
from fangyan.errors import UserError
from fangyan.inference import load
from fangyan.recipe import Recipe
from fangyan.tasks.token_classification.task import TokenClassification
from fangyan.training.train import train
from small_disk import fill, mounted
from task_cases import CASES

PAGE = 4096
# What onnxscript's exporter and transformers need Python 3.11 for.
pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="transformers' exporters need Python 3.11")

TEXTS = ["我食飯", "你今日去街飲茶", "佢", "龘"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_exports.tagged_run(tmp_path_factory.mktemp("deployment") / "run")


@pytest.fixture(scope="module")
def graph(run):
    export_graph(run, run.parent / "graph")
    return run.parent / "graph"


def test_a_graph_tags_as_its_run(run, graph):
    found = fangyan.load(graph).predict(TEXTS)
    assert found == fangyan.load(run).predict(TEXTS)
    assert sorted(path.name for path in graph.iterdir()) == [
        "README.md",
        "config.json",
        "export.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def example_of(folder):
    """Run the example of a folder's README where there is neither PyTorch nor transformers nor fangyan."""
    readme = (folder / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\n")[2].partition("```")[0]
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'fangyan']))\n"
    command = [sys.executable, "-W", "error", "-c", blocked + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_the_readme_tags_without_pytorch(run, graph):
    """Tag by tag, as the scores of the run have it; the run itself also makes tags go together."""
    printed = [line.split() for line in example_of(graph).splitlines()]
    exported = load.load_exported(run / "model")
    inputs = exported.backend(list("我食飯"), is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        best = exported.model(**inputs).logits[0, 1:-1].argmax(-1).tolist()
    expected = [exported.model.config.id2label[i] for i in best]
    assert printed == [[token, tag] for token, tag in zip("我食飯", expected, strict=True)]


@pytest.fixture(scope="module")
def small(run):
    """The graph in 8 bits, and what its export measured."""
    return run.parent / "small", export_graph(run, run.parent / "small", in_int8=True)


def test_int8_is_nearly_the_same(graph, small):
    folder, deployed = small
    assert [form.name for form in deployed.forms][1:] == ["ONNX, float32", "ONNX, int8"]
    import onnx

    operators = Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)
    assert operators["MatMulInteger"] > 0
    both = [scores(path) for path in (graph, folder)]
    assert 0 < np.abs(both[0] - both[1]).max() < 0.05 * np.abs(both[0]).max()
    assert "| ONNX, int8 |" in (folder / "README.md").read_text(encoding="utf-8")


def test_answers_in_int8_do_not_depend_on_what_else_is_run(small):
    exported = load.load_exported(small[0])
    examples = [Example({"tokens": tuple(text)}, "", "") for text in TEXTS]
    sequences = exported.task.tokenize(examples, Tokenizer(exported.backend), 64)
    graph, together = exported.packed(), collate(sequences, 0, 0)
    found = graph.split_logits(graph.logits(together), together)
    for sequence, logits in zip(sequences, found, strict=True):
        assert torch.equal(logits, graph.logits(collate([sequence], 0, 0))[0])


def test_a_text_without_a_subword_has_no_logits(graph):
    """As of a blank line, where the tokenizer adds nothing: a graph takes one sub-word at least."""
    model = load.load_exported(graph).packed()
    some, none = TokenizedSequence([5, 6], [0, 0], 0), TokenizedSequence([], [], 1)
    for sequences in ([some, none], [none]):
        batch = collate(sequences, 0, 0)
        found = model.split_logits(model.logits(batch), batch)
        assert [tuple(logits.shape) for logits in found] == [(len(each.input_ids), 4) for each in sequences]
    batch = collate([some], 0, 0)
    assert torch.equal(model.logits(batch)[0], model.logits(collate([some, none], 0, 0))[0])


@pytest.mark.parametrize(
    ("subword", "expected"), [("first", "pieces[0]"), ("last", "pieces[-1]"), ("mean", "pieces.mean(0)")]
)
def test_the_example_reads_the_subword_that_was_learned(subword, expected):
    task = TokenClassification(tiny_exports.LABELS, "segmentation", "characters", subword=subword)
    assert f"{expected}.argmax()" in _example(task, tiny_exports.tokenizer())


def scores(folder):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    ids = np.arange(12).reshape(2, 6)
    return session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]


def test_a_graph_of_another_model_is_refused(run, tmp_path, monkeypatch):
    """And no part of it stays. The fault: one weight changes on its way."""

    def changed(model, with_segments):
        model.classifier.weight.data[0, 0] += 1e-2
        return trace(model, with_segments)

    trace = deployment.trace
    monkeypatch.setattr(deployment, "trace", changed)
    with pytest.raises(UserError, match=r"the ONNX graph is not the run's model: its logits differ by up to"):
        export_graph(run, tmp_path / "graph")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("agreement", "is_good"),
    [
        (Agreement(TOLERANCE, 10, 10, 10), True),
        (Agreement(2 * TOLERANCE, 10, 10, 10), False),
        (Agreement(float("nan"), 10, 0, 0), False),
        (Agreement(0.0, 10, 2000, 1999), True),
        (Agreement(0.0, 10, 100, 99), False),
    ],
)
def test_what_counts_as_agreement(agreement, is_good):
    if is_good:
        agreement.check("folder")
    else:
        with pytest.raises(UserError, match="folder: the ONNX graph is not the run's model"):
            agreement.check("folder")


def test_export_to_a_full_disk(run, tmp_path):
    """A sentence, and nothing else stays, whatever of the folder there is room for."""
    with mounted(tmp_path / "disk", 512 * PAGE) as disk:
        for pages in (0, 12, 30):
            filler = fill(disk, leave=pages * PAGE)
            with pytest.raises(UserError, match=r"cannot be written \(.*after making room, run the command"):
                export_graph(run, disk / "graph")
            assert list(disk.iterdir()) == [filler]
            filler.unlink()


def test_formats_that_there_are_not():
    with pytest.raises(UserError, match="--format: found 'tflite', expected one of onnx, int8, gguf"):
        check_format("tflite")
    with pytest.raises(
        UserError, match="fangyan export RUN FOLDER --merge, and then .*convert_hf_to_gguf.py"
    ):
        check_format("gguf")


def test_models_that_cannot_be_compared_or_exported(run, graph, tmp_path):
    with pytest.raises(UserError, match="has no examples to compare on, expected a run folder with splits"):
        export_graph(run / "model", tmp_path / "graph")
    with pytest.raises(UserError, match="it exists, expected a new folder"):
        export_graph(run, graph)
    with pytest.raises(UserError, match="an ONNX graph, but this export needs the model itself"):
        load.merge(graph, tmp_path / "merged")


def test_pooling_that_its_class_does_not_have_is_refused(tmp_path):
    tiny_exports.pair_classifier(tmp_path / "run" / "model", pooling="last")
    (tmp_path / "run" / "recipe.yaml").write_text("data: {format: jsonl}\n", encoding="utf-8")
    example = Example({"text": "我", "pair": "你", "label": "same"}, "dev:1", "1")
    write_examples(tmp_path / "run" / "splits" / "dev.jsonl", [example])
    with pytest.raises(UserError, match="its head reads the last of the sub-words, which its class in"):
        export_graph(tmp_path / "run", tmp_path / "graph")
    assert not (tmp_path / "graph").exists()


def test_a_damaged_graph_is_one_sentence(graph, tmp_path):
    shutil.copytree(graph, tmp_path / "graph")
    (tmp_path / "graph" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"cannot be loaded: model.onnx: "):
        fangyan.load(tmp_path / "graph")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_graphs_of_every_task(case, tmp_path):
    """Those of adapters, too: what is written is the adapted model."""
    sections = {"adaptation": {"name": "lora", "rank": 4}} if case.ranks[1] and case.family else {}
    sections["train"] = {"epochs": 1}
    # One layer: a graph is traced node by node.
    recipe = case.recipe(tmp_path, layers=1, run_dir=str(tmp_path / "run"), **sections)
    train(Recipe.model_validate(recipe))
    folder = tmp_path / "graph"
    if case.family is None:
        with pytest.raises(UserError, match="WordFormForTokenClassification cannot be written as an ONNX"):
            export_graph(tmp_path / "run", folder)
        assert not folder.exists()
        return
    deployed = export_graph(tmp_path / "run", folder)
    assert deployed.agreement.same == deployed.agreement.answers
    assert example_of(folder).strip()
    run_metrics, graph_metrics = (form.metrics for form in deployed.forms)
    assert graph_metrics == {name: pytest.approx(value, rel=1e-4) for name, value in run_metrics.items()}
    if "Causal" in case.auto_model and case.task["name"] == "instruction":
        with pytest.raises(UserError, match="an ONNX graph, but writing text needs the model itself"):
            fangyan.load(folder)
        return
    texts = {
        "sequence_classification": ["w10 w11 w12", "w50 w20"],
        "cloze": ["w10 w11 w12", "w50 w20"],
        "extractive_qa": ["w20\tw11 w20 w31 w12"],
        "masked_lm": ["w20 [MASK] w22 w23"],
    }[case.task["name"]]
    if "columns" in case.data:
        texts = ["w10 w11\tw12 w13"]
    both = [fangyan.load(path).predict(texts) for path in (folder, tmp_path / "run")]
    for ours, theirs in zip(*both, strict=True):
        assert_same(ours.record(), theirs.record())


def assert_same(left, right):
    """Compare records, whose probabilities are rounded to four digits, one of which may be another."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_same(left[name], right[name])
    elif isinstance(left, list | tuple):
        for ours, theirs in zip(left, right, strict=True):
            assert_same(ours, theirs)
    elif isinstance(left, float):
        assert left == pytest.approx(right, abs=1.1e-4)
    else:
        assert left == right
