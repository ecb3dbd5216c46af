"""Attributions that add up, of every kind of head, and models of which there are none."""

from dataclasses import replace

import fangyan
import pytest
import torch
from fangyan.analysis.compare import compare
from fangyan.analysis.options import Options
from fangyan.analysis.probe import probe
from fangyan.analysis.run_model import RunModel
from fangyan.errors import UserError
from fangyan.inference.load import load_exported
from probed_runs import BY_NAME, TAGGER, run_folder

TEXT = "w10 w11 w50 w12"


def attributions(folder, text):
    (found,) = probe(folder, Options(parts=["saliency"], texts=[text]))["saliency"]
    return found


@pytest.mark.parametrize("name", ["one class", "one class, causal", "several classes"])
def test_attributions_add_up_to_what_the_text_makes(tmp_path, name):
    folder = run_folder(BY_NAME[name], tmp_path)
    (predicted,) = fangyan.load(folder).predict([TEXT])
    found = attributions(folder, TEXT)
    labels = predicted.label if isinstance(predicted.label, tuple) else (predicted.label,)
    assert [each.label for each in found.attributions] == list(labels)
    for each in found.attributions:
        assert sum(each.words) == pytest.approx(each.score - each.baseline, abs=2e-3)
    assert [word for word in found.words if word.startswith("w")] == TEXT.split()
    assert (folder / "probe" / "saliency-0.svg").is_file()


def test_scores_are_those_of_plain_transformers(tmp_path):
    folder = run_folder(BY_NAME["one class"], tmp_path)
    exported = load_exported(folder / "model")
    with torch.no_grad():
        logits = exported.model(**exported.backend(TEXT, return_tensors="pt")).logits[0]
    (each,) = attributions(folder, TEXT).attributions
    assert each.score == pytest.approx(float(logits.max()), abs=1e-4)


def test_attributions_of_a_number_of_a_pair(tmp_path):
    folder = run_folder(BY_NAME["a number of pairs"], tmp_path)
    found = attributions(folder, "w10 w11\tw12")
    (each,) = found.attributions
    assert sum(each.words) == pytest.approx(each.score - each.baseline, abs=2e-3)
    assert float(each.label) == pytest.approx(each.score, abs=1e-3)


@pytest.mark.parametrize("subword", ["first", "last", "mean"])
def test_attributions_of_tags(tmp_path, subword):
    folder = run_folder(TAGGER, tmp_path, task={"subword": subword})
    found = attributions(folder, TEXT)
    (predicted,) = fangyan.load(folder).predict([TEXT])
    assert [each.of for each in found.attributions] == TEXT.split()
    assert [each.label for each in found.attributions] == list(predicted.tags)
    assert [word for word in found.words if word in TEXT.split()] == TEXT.split()
    for each in found.attributions:
        assert len(each.words) == len(found.words)
        assert sum(each.words) == pytest.approx(each.score - each.baseline, abs=2e-3)


@pytest.mark.parametrize(
    "adaptation",
    [
        {"name": "lora", "rank": 4},
        {"name": "lora", "rank": 4, "quantization": "nf4"},
        {"name": "prompt_tuning"},
    ],
    ids=lambda adaptation: " ".join(map(str, adaptation.values())),
)
def test_attributions_of_an_adapter(tmp_path, adaptation):
    packing = adaptation["name"] != "prompt_tuning"
    folder = run_folder(TAGGER, tmp_path, adaptation=adaptation, train={"packing": packing})
    for each in attributions(folder, TEXT).attributions:
        assert sum(each.words) == pytest.approx(each.score - each.baseline, abs=2e-3)
    assert compare(folder, folder, resamples=100).metrics["token_accuracy"].p == 1.0


def test_what_is_before_a_word_does_not_matter_to_a_causal_model(tmp_path):
    """What comes after a word adds nothing to its tag, and is found to add nothing."""
    folder = run_folder(replace(TAGGER, family="GPT-2"), tmp_path)
    found = attributions(folder, TEXT)
    first = found.attributions[0]
    end = found.words.index("w10") + 1
    assert first.words[end:] == [0.0] * (len(found.words) - end)
    assert any(first.words[:end])


def test_a_model_that_reads_more_than_embeddings(tmp_path):
    folder = run_folder(BY_NAME["tags from nothing"], tmp_path)
    with pytest.raises(UserError, match="WordForm.* reads more of its sub-words than their embeddings"):
        attributions(folder, "abba deé")


@pytest.mark.parametrize(("name", "task"), [("spans", "extractive_qa"), ("hidden words", "masked_lm")])
def test_a_model_without_labels(tmp_path, name, task):
    folder = run_folder(BY_NAME[name], tmp_path)
    with pytest.raises(UserError, match=f"--saliency: is for models that label .*, found the task {task}"):
        attributions(folder, TEXT)


def test_a_text_that_is_too_long_or_none(tmp_path):
    folder = run_folder(TAGGER, tmp_path)
    with pytest.raises(UserError, match="--saliency: the text is empty"):
        attributions(folder, " ")
    longest = RunModel.load(folder).max_length
    with pytest.raises(UserError, match="the text is longer than .* sub-words, expected one sentence"):
        attributions(folder, "w10 " * (longest + 1))
    with pytest.raises(UserError, match="--saliency: 101 tokens, expected 100 at most"):
        attributions(folder, "w10 " * 101)
