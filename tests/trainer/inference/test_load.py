"""A finished run in use: what it predicts, evaluates and exports."""

import json
import re

import fangyan
import pytest
import torch
from fangyan.data.formats.hkcancor import HKCanCor, corpus_folder
from fangyan.errors import UserError
from fangyan.inference import load
from safetensors.torch import load_file
from small_disk import fill, mounted
from tiny_exports import tagger
from transformers import AutoModelForTokenClassification, AutoTokenizer

pytestmark = pytest.mark.slow

PAGE = 4096


def test_load_predicts_what_plain_transformers_does(finished):
    """The same tags, sentence by sentence, from transformers alone and from fangyan."""
    folder = finished.folder / "run"
    model = AutoModelForTokenClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert type(model).__name__ == "ElectraForTokenClassification"
    assert load_file(folder / "model" / "model.safetensors").keys() == model.state_dict().keys()
    examples = list(HKCanCor(tokens="characters").read(corpus_folder() / "FC-R011_v.cha"))[:60]
    predictor = fangyan.load(folder)
    predictions = predictor.predict(["".join(example.fields["tokens"]) for example in examples])
    for example, prediction in zip(examples, predictions, strict=True):
        tokens = example.fields["tokens"]
        assert prediction.tokens == tokens
        inputs = tokenizer(list(tokens), is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            scores = model(**inputs).logits[0].log_softmax(-1)
        rows = [inputs.word_ids().index(i) for i in range(len(tokens))]
        assert tags_of(predictor.task, scores[rows]) == prediction.tags


def tags_of(task, log_probabilities):
    """Decode one sentence, (T, C)."""
    from fangyan.tasks.token_classification.decoding import make_decoder

    classes = make_decoder(task.labels, task.scheme)(log_probabilities.numpy())
    return tuple(task.labels[i] for i in classes)


def test_model_card(finished):
    card = (finished.folder / "run" / "model" / "README.md").read_text(encoding="utf-8")
    for expected in (
        "license: cc-by-4.0",
        "HKCanCor",
        "- test: FC-R011_v",
        "| joint f1 |",
        "name: cantonese-pos",
        "A token's tag is that of its first sub-word that is more than a space.",
    ):
        assert expected in card


def test_evaluate_returns_the_metrics_of_the_run(finished, tmp_path, monkeypatch):
    folder = finished.folder / "run"
    expected = next(r for r in finished.records() if r.get("split") == "test-best")
    monkeypatch.chdir(tmp_path)
    metrics = fangyan.evaluate(folder)
    assert metrics == {name: pytest.approx(expected[name]) for name in metrics}
    assert {"joint_f1", "segmentation_f1", "pos_accuracy", "token_accuracy"} == metrics.keys()
    path = str(corpus_folder() / "FC-R011_v.cha")
    assert fangyan.evaluate(folder, [path]) == metrics
    out, _ = finished("evaluate", str(folder), "--data", path)
    assert f"{metrics['joint_f1']:.2f}" in out
    with pytest.raises(UserError, match=r"evaluate needs a run folder with its recipe.yaml, found a model"):
        fangyan.evaluate(folder / "model")


def test_evaluate_of_a_tag_that_was_not_learned(finished, tmp_path):
    """It is an error of the model, with a note; everything else is scored as before."""
    path = tmp_path / "new.cha"
    path.write_text("*XXA:\t食飯 嘩 .\n%mor:\tv|sik6faan6 intj|waa3 .\n", encoding="utf-8")
    note = r"tags that the model has not learned are scored as errors: B-intj \(1, first in new.cha:1\)"
    with pytest.warns(UserWarning, match=note):
        metrics = fangyan.evaluate(finished.folder / "run", [str(path)])
    assert metrics["pos_accuracy"] < 100.0
    out, err = finished("evaluate", str(finished.folder / "run"), "--data", str(path))
    assert "fangyan: tags that the model has not learned are scored as errors: B-intj" in err
    assert f"{metrics['pos_accuracy']:.2f}" in out


def test_predict_streams_and_keeps_order(finished, tmp_path):
    texts = [f"我哋有{i}個" for i in range(300)]
    (tmp_path / "in.txt").write_text("\n".join([*texts, "", "多謝"]) + "\n", encoding="utf-8")
    out, _ = finished("predict", str(finished.folder / "run"), "--input", str(tmp_path / "in.txt"))
    lines = out.splitlines()
    joined = ["".join(word.rpartition("/")[0] for word in line.split()) for line in lines]
    assert joined == [*texts, "", "多謝"]
    out, _ = finished("predict", str(finished.folder / "run"), "食飯", "--json")
    assert json.loads(out)["tokens"] == ["食", "飯"]
    from_model = fangyan.load(finished.folder / "run" / "model").predict(["食飯"])
    assert list(from_model[0].tags) == json.loads(out)["tags"]


def test_stream_answers_each_text_before_the_next_is_read(finished):
    read = []

    def texts():
        for text in ("食飯", "飲茶"):
            read.append(text)
            yield text

    predictions = fangyan.load(finished.folder / "run").stream(texts(), interactive=True)
    assert next(predictions).tokens == ("食", "飯")
    assert read == ["食飯"]


def test_predict_of_a_long_text_tags_it_whole(finished):
    text = "我哋今日去飲茶," * 200
    (prediction,) = fangyan.load(finished.folder / "run").predict([text])
    assert "".join(prediction.tokens) == text
    assert len(prediction.tags) == len(text)
    assert "".join(word for word, _ in prediction.words) == text


def test_export_is_a_copy_that_predicts(finished, tmp_path):
    fangyan.export(finished.folder / "run", tmp_path / "copy")
    expected = fangyan.load(finished.folder / "run").predict(["我哋聽日去睇戲"])
    assert fangyan.load(tmp_path / "copy").predict(["我哋聽日去睇戲"]) == expected
    with pytest.raises(UserError, match="it exists, expected a new folder"):
        fangyan.export(finished.folder / "run", tmp_path / "copy")


@pytest.mark.parametrize("write", [load.export, load.merge])
def test_export_to_a_full_disk(write, tmp_path):
    """For each number of free pages until it is enough: a sentence, and no part of the folder."""
    model, sentences = tagger(tmp_path / "model"), []
    with mounted(tmp_path / "disk", 64 * PAGE) as disk:
        for pages in range(64):
            filler = fill(disk, leave=pages * PAGE)
            try:
                write(model, disk / "tagger")
                break
            except UserError as error:
                sentences.append(str(error))
                assert list(disk.iterdir()) == [filler]
            finally:
                filler.unlink()
        written = sum(path.stat().st_size for path in (disk / "tagger").iterdir())
    assert len(sentences) > written / PAGE / 2
    pattern = r"cannot be written \(No space left on device\); 0\.\d{3} GB are free on its disk; after making"
    assert [sentence for sentence in sentences if not re.search(pattern, sentence)] == []


def test_load_of_a_model_that_is_not_fangyans(tmp_path, finished):
    fangyan.export(finished.folder / "run", tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["fangyan"]
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="no field 'fangyan', expected a model that fangyan exported"):
        fangyan.load(tmp_path / "copy")
    path.write_text(json.dumps(config | {"fangyan": {"task": "none"}}), encoding="utf-8")
    with pytest.raises(UserError, match="fangyan: task is 'none', expected one of token_classification, "):
        fangyan.load(tmp_path / "copy")
