"""Words after prompts, against a plain loop over the sub-words of each."""

import numpy as np
import pytest
import torch
from fangyan.data.tokenization import Tokenizer
from fangyan.errors import UserError
from fangyan.prompting import scoring
from fangyan.prompting.scoring import LabelWords, WordScorer, calibrated, normalized
from model_families import FAMILIES, save
from tiny_runs import workload
from transformers import AutoTokenizer

CAUSAL = {family.name: family for family in FAMILIES if family.causal}
# Of one sub-word, of several that begin alike, of others, and two that others begin with.
WORDS = {
    "a": "w20",
    "b": "w30 w31 w32",
    "c": "w30 w31 w33",
    "d": "w30 w40",
    "e": "w41 w42",
    "f": "w30",
    "g": "w30 w31",
}
# By what longer words go on.
LONGER = {"f": [31, 40], "g": [32, 33]}
PROMPTS = [[11, 12, 13], [14], [15, 16, 17, 18, 19], [12, 11, 13], [50]]


def label_words(folder, words=None):
    tokenizer = Tokenizer(AutoTokenizer.from_pretrained(folder))
    return LabelWords(list(WORDS), WORDS if words is None else words, tokenizer)


def plain(model, beginning, prompts, words):
    scores = []
    for prompt in prompts:
        for label, ids in zip(WORDS, words.ids, strict=True):
            whole = torch.tensor([[*beginning, *prompt, *ids]])
            with torch.no_grad():
                logs = model(input_ids=whole).logits[0].double().log_softmax(-1)
            score = sum(float(logs[i - len(ids) - 1, subword]) for i, subword in enumerate(ids))
            goes_on = sum(float(logs[-1, subword].exp()) for subword in LONGER.get(label, []))
            scores.append(score + np.log(1.0 - goes_on))
    return np.array(scores).reshape(len(prompts), len(words.ids))


@pytest.mark.parametrize("name", CAUSAL)
def test_words_are_scored_whole(tmp_path, name):
    model = save(CAUSAL[name], tmp_path)
    words = label_words(tmp_path)
    for beginning in ([], [21, 22, 23, 24, 25] * 8):  # longer than windows and chunks
        scorer = WordScorer(model, words, beginning, 0)
        expected = plain(model, beginning, PROMPTS, words)
        np.testing.assert_allclose(scorer.score(PROMPTS), expected, rtol=1e-4, atol=1e-4)
    if name in ("Llama", "Qwen 3", "GPT-2", "Gemma 2", "Mistral"):
        assert scorer._cache is not None


def test_batches_may_be_small(tmp_path, monkeypatch):
    model = save(CAUSAL["Qwen 3"], tmp_path)
    scorer = WordScorer(model, label_words(tmp_path), [21, 22], 0)
    expected = scorer.score(PROMPTS)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)
    np.testing.assert_allclose(scorer.score(PROMPTS), expected, rtol=1e-4, atol=1e-4)
    assert scorer.score([]).shape == (0, len(WORDS))


@pytest.mark.parametrize("beginning", [[], [21, 22]])
def test_words_of_one_sub_word_are_scored_in_padded_batches(tmp_path, beginning, monkeypatch):
    model = save(CAUSAL["Qwen 3"], tmp_path)
    words = LabelWords(
        ["a", "b"], {"a": "w20", "b": "w21"}, Tokenizer(AutoTokenizer.from_pretrained(tmp_path))
    )
    assert words.stems == [()]
    scorer = WordScorer(model, words, beginning, 0)
    assert list(scorer._batches([3, 1, 5, 3, 1])) == [[1, 4, 0, 3, 2]]
    found = scorer.score(PROMPTS)
    np.testing.assert_allclose(found, [scorer.score([prompt])[0] for prompt in PROMPTS], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([[*beginning, *PROMPTS[2]]])).logits[0, -1].log_softmax(-1)
    np.testing.assert_allclose(found[2], logs[[20, 21]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "prefix_tuning"])
def test_words_of_an_adapted_model(tmp_path, method):
    """Whose own tokens are there once, whatever the model keeps."""
    tokens = {} if method == "lora" else {"virtual_tokens": 4}
    adaptation = {"name": method, **tokens}
    run = workload(CAUSAL["Qwen 3"], tmp_path, adaptation=adaptation, train={"packing": False})
    model = run.model.model.eval()
    words = label_words(tmp_path / "base")
    beginning = [21, 22, 23]
    found = WordScorer(model, words, beginning, 0).score(PROMPTS)
    np.testing.assert_allclose(found, plain(model, beginning, PROMPTS, words), rtol=1e-4, atol=1e-4)


def test_label_words_refuse(tmp_path):
    save(CAUSAL["Qwen 3"], tmp_path)
    with pytest.raises(
        UserError, match="--words: 'w30  w40' and 'w30 w40' are the same for the model, expected"
    ):
        label_words(tmp_path, {**WORDS, "a": "w30  w40"})
    with pytest.raises(
        UserError, match="--words: 'z' is no label of the data, expected some of a, b, c, d, e"
    ):
        label_words(tmp_path, {"z": "w30"})
    with pytest.raises(
        UserError, match="--words: 'unheard' is unknown to the model's tokenizer, expected an"
    ):
        label_words(tmp_path, {**WORDS, "a": "unheard"})


def test_calibration_by_hand():
    """A label that the model always likes is liked less; the mean is of probabilities, as in the paper."""
    scores = np.log(np.array([[0.6, 0.3], [0.2, 0.1]], dtype=np.float32))
    free = np.log(np.array([[0.9, 0.1], [0.35, 0.15]], dtype=np.float32))  # shares: 0.7 and 0.3
    shares = np.array([[0.6, 0.3], [0.2, 0.1]]) / [[0.9], [0.3]]
    expected = shares / np.array([0.8, 0.2])
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(calibrated(scores, free)), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(normalized(scores)), shares, rtol=1e-5)
    # Prompts that say as little as those without content leave every label alike.
    np.testing.assert_allclose(np.exp(calibrated(free[:1], free[:1])), [[0.5, 0.5]], rtol=1e-5)
