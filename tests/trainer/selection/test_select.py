"""Which sentences are selected for a model, and which never are."""

import json
import random

import fangyan
import numpy as np
import pytest
import torch
from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.selection import select as selection
from fangyan.selection.pool import NOTHING, fresh, labelled_examples
from fangyan.selection.select import STRATEGIES, choose, select
from fangyan.selection.uncertainty import uncertainty
from model_families import BY_NAME
from tiny_exports import CHARACTERS, classifier, tagger, writer
from tiny_runs import exported, workload


def sentences(count, seed=0):
    draw = random.Random(seed)
    texts = dict.fromkeys("".join(draw.choices(CHARACTERS, k=draw.randint(2, 9))) for _ in range(2 * count))
    return [Example({"tokens": tuple(text)}, f"raw.txt:{i}", text) for i, text in enumerate(texts)][:count]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder whose data are the first sentences."""
    folder = tmp_path_factory.mktemp("select") / "run"
    folder.mkdir()
    tagger(folder / "model")
    lines = []
    for example in sentences(20):
        lines += [f"{character} B-n" for character in example.fields["tokens"]] + [""]
    for name, rows in (("train", lines), ("dev", ["我 B-n", "佢 B-v", ""])):
        (folder / f"{name}.conll").write_text("\n".join(rows), encoding="utf-8")
    data = {"format": "conll", **{name: str(folder / f"{name}.conll") for name in ("train", "dev")}}
    recipe = {"name": "x", "seed": 3, "data": {**data, "test": 0.2, "tokens": "characters"}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder


def silent(message):
    raise AssertionError(message)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_select_leaves_out_what_is_labelled_and_copies(run, strategy):
    spaced = Example({"tokens": ("我佢",)}, "raw.txt:1", "")  # of dev, where it is two tokens
    pool = [spaced, *sentences(60), *sentences(60)]
    chosen = select(run, pool, 15, strategy, seed=1, say=silent)
    assert len(set(chosen)) == len(chosen) == 15
    assert all(20 < i <= 60 for i in chosen)  # neither dev, nor train or the test split held out of it
    assert chosen == select(run, pool, 15, strategy, seed=1, say=silent)
    assert sorted(select(run, pool, 1000, strategy, say=silent)) == list(range(21, 61))


def test_select_draws_by_the_seed(run):
    pool = sentences(60)
    bare = [Example({**example.fields, "tags": ("?",)}, "", "") for example in pool]
    assert select(run, bare, 15) == select(run, pool, 15)  # labels are not read
    for strategy in ("random", "badge"):
        assert select(run, pool, 15, strategy, seed=1) != select(run, pool, 15, strategy, seed=2)
    assert fangyan.select(run, pool, 3) == select(run, pool, 3)


@pytest.mark.parametrize("kind", ["entropy", "margin", "least_confidence"])
def test_select_takes_what_the_model_is_least_sure_of(run, kind):
    predictor = fangyan.load(run)
    pool = sentences(60)
    scores = [uncertainty(each.log_probabilities_UC, kind) for each in predictor.score(pool)]
    expected = sorted(range(20, 60), key=lambda i: -scores[i])[:10]
    chosen = select(run, pool, 10, kind)
    np.testing.assert_allclose([scores[i] for i in chosen], [scores[i] for i in expected], rtol=1e-5)


@pytest.mark.parametrize("strategy", ["badge", "k_centre"])
def test_select_compares_the_least_sure_of_many(run, strategy, monkeypatch):
    monkeypatch.setattr(selection, "MOST_CANDIDATES", 12)
    pool = sentences(60)
    chosen = choose(fangyan.load(run), pool, 6, strategy, 0)
    assert set(chosen) <= set(choose(fangyan.load(run), pool, 12, "entropy", 0))


def test_scores_come_with_what_is_predicted(run):
    predictor = fangyan.load(run)
    pool = sentences(60)
    scored = list(predictor.score(pool))
    predicted = [[predictor.labels[i] for i in each.classes_U] for each in scored]
    assert predicted == [list(each.labels) for each in predictor.annotate(pool)]
    # No I- begins a sentence, likely as it may be.
    assert any((each.classes_U != each.log_probabilities_UC.argmax(1)).any() for each in scored)


def test_select_where_all_are_labelled(run):
    for strategy in STRATEGIES:
        assert select(run, sentences(20), 5, strategy) == []


def test_scores_of_a_sentence_in_several_sequences_are_of_all_its_tokens(run):
    predictor = fangyan.load(run)
    long = Example({"tokens": tuple(CHARACTERS * 20)}, "", "")
    (tagged,) = predictor.score([long], hidden=True)
    assert tagged.log_probabilities_UC.shape == (220, 4)
    assert tagged.hidden_UH.shape == (220, 16)
    np.testing.assert_allclose(np.exp(tagged.log_probabilities_UC).sum(1), 1.0, rtol=1e-5)


def test_select_for_a_classifier(tmp_path):
    model = classifier(tmp_path / "model")
    pool = [Example({"text": example.group}, "", "") for example in sentences(40)]
    messages = []
    chosen = {strategy: select(model, pool, 8, strategy, say=messages.append) for strategy in STRATEGIES}
    assert all(len(set(indices)) == 8 for indices in chosen.values())
    assert set(messages) == {
        f"{model}: a model without its run does not say what it was trained on: that may be selected again"
    }
    predictor = fangyan.load(model)
    found = list(predictor.score(pool, hidden=True))
    certain = [
        next(iter(each.probabilities.values())) for each in predictor.predict(e.group for e in sentences(40))
    ]
    for each, share in zip(found, certain, strict=True):
        assert np.exp(each.log_probabilities_UC.max()) == pytest.approx(share, rel=1e-5)
        assert each.hidden_UH.shape == (1, 16)
    assert set(chosen["margin"]) == set(np.argsort(certain)[:8].tolist())


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (writer, "found another model"),
        (lambda folder: classifier(folder, kind="multi_label_classification"), "found a model of any number"),
        (lambda folder: classifier(folder, ["score"], "regression"), "found a model of numbers"),
    ],
)
@pytest.mark.parametrize("strategy", ["entropy", "random"])
def test_select_refuses_models_without_one_class_for_each(tmp_path, make, found, strategy):
    model = make(tmp_path / "model")
    with pytest.raises(UserError, match=f"expected a tagger, or a classifier of one class per text, {found}"):
        select(model, [Example({"text": "我"}, "", "")], 1, strategy, say=str)


def test_select_refuses_options(run):
    with pytest.raises(UserError, match="strategy: found 'best', expected one of entropy, margin, "):
        select(run, sentences(5), 3, "best")
    with pytest.raises(UserError, match="number: 0, expected at least 1"):
        select(run, sentences(5), 0)
    with pytest.raises(UserError, match="seed: 4294967296, expected 0 to 4294967295"):
        select(run, sentences(5), 1, seed=2**32)


def test_labelled_examples_of_several_data_sets(tmp_path):
    """What is told of its data set is found again without that."""
    for name in "abc":
        text = f"{name}\tB-n\n佢\tB-v\n\n{name}{name}\tB-n\n"
        (tmp_path / f"{name}.conll").write_text(text, encoding="utf-8")
    sources = [{"name": name, "format": "conll", "train": str(tmp_path / f"{name}.conll")} for name in "abc"]
    sources[0]["dev"] = sources[1]["dev"] = 0.5
    data = {"format": "sources", "sources": sources, "zero_shot": ["c"], "prefix": True}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "x", "data": data}), encoding="utf-8")
    labelled = labelled_examples(tmp_path, silent)
    assert (len(labelled.train), len(labelled.held_out)) == (2, 4)
    pool = [Example({"tokens": (text,)}, "", "") for text in ("a佢", "aa", "b佢", "bb", "c佢", "cc", "dd")]
    assert fresh(pool, [*labelled.train, *labelled.held_out]).tolist() == [6]


def test_labelled_examples_that_are_gone(tmp_path):
    data = {"format": "conll", "train": "gone.conll"}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "x", "data": data}), encoding="utf-8")
    messages = []
    assert labelled_examples(tmp_path, messages.append) == NOTHING
    assert messages == [
        "the run's own data cannot be read, and may be selected again (gone.conll: no such file)"
    ]


@pytest.mark.parametrize(
    "sections",
    [
        {"adaptation": {"name": "lora", "rank": 4}},
        {"adaptation": {"name": "prompt_tuning", "virtual_tokens": 4}, "train": {"packing": False}},
        {"model": {"path": "scratch", "size": "base"}, "adaptation": {"name": "full"}},
    ],
    ids=["lora", "prompt_tuning", "scratch"],
)
def test_hidden_states_of_other_models_make_their_probabilities(tmp_path, sections):
    run = workload(BY_NAME["BERT"], tmp_path, **sections)
    predictor = fangyan.load(exported(run, tmp_path / "model"))
    pool = [Example({"tokens": tuple(f"w{10 + i + j}" for j in range(3))}, "", "") for i in range(12)]
    head = run.model.head
    for each in predictor.score(pool, hidden=True):
        logits = torch.from_numpy(each.hidden_UH) @ head.weight.T + head.bias
        found = torch.from_numpy(each.log_probabilities_UC)
        torch.testing.assert_close(logits.log_softmax(1), found, rtol=1e-4, atol=1e-4)
    for strategy in ("badge", "k_centre", "margin"):
        assert len(select(tmp_path / "model", pool, 4, strategy, say=str)) == 4
