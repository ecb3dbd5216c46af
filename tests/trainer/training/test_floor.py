"""A model is compared with a guess, and what knows nothing of the data is refused."""

import json

import pytest
from fangyan.data.example import Example
from fangyan.errors import UserError
from fangyan.models.loading import ModelConfig
from fangyan.recipe import Recipe
from fangyan.tasks.extractive_qa.task import ExtractiveQA
from fangyan.tasks.sequence_classification.task import SequenceClassification
from fangyan.tasks.token_classification.floor import MostFrequentTags
from fangyan.tasks.token_classification.task import TokenClassification
from fangyan.training.floor import below_the_floor
from fangyan.training.train import train
from fangyan.training.workload import Workload
from model_families import BY_NAME, save
from transformers import AutoModelForTokenClassification


def tagged(*sentences):
    return [Example({"tokens": tuple(w), "tags": tuple(t)}, "x", "g") for w, t in sentences]


def test_guess_is_the_most_frequent_tag_of_each_word():
    guess = MostFrequentTags([("ab", "xy"), ("ac", "xz"), ("a", "y"), ("bb", "zz")])
    assert guess.tag("abcd") == ("x", "z", "z", "z")  # z is the most frequent of all
    assert MostFrequentTags([]).tag("a") == ("",)


def test_floor_of_tags_and_of_classes():
    splits = {"train": tagged(("ab", "xy"), ("a", "x")), "dev": tagged(("abc", "xyy"))}
    assert TokenClassification(["x", "y"], "plain").floor(splits) == {
        "dev": {"token_accuracy": pytest.approx(200 / 3)}
    }
    texts = {
        name: [Example({"text": "t", "label": label}, "", "") for label in labels]
        for name, labels in (("train", "aab"), ("test", "abb"))
    }
    floor = SequenceClassification(["a", "b"], "single_label_classification").floor(texts)
    assert floor["test"]["accuracy"] == pytest.approx(100 / 3)
    assert SequenceClassification(["a", "b"], "multi_label_classification").floor(texts) == {}


@pytest.mark.parametrize(("train", "f1"), [(["ab", "ab", ""], 100 / 3), (["ab", "", ""], 50.0)])
def test_floor_of_answers_is_the_whole_context_or_none(train, f1):
    def asked(answer):
        answers = ({"text": answer, "start": 0},) if answer else ()
        return Example({"question": "?", "context": "ab cd", "answers": answers}, "a:1", "")

    # The whole context has an F1 of 2/3 where "ab" is right, and of 0 where nothing is.
    splits = {"train": [asked(answer) for answer in train], "dev": [asked("ab"), asked("")]}
    floor = ExtractiveQA(may_be_none=True).floor(splits)
    assert floor.keys() == {"dev"}
    assert floor["dev"]["f1"] == pytest.approx(f1)


@pytest.mark.parametrize(
    ("found", "greater", "said"),
    [(60.0, True, True), (70.0, True, False), (70.0, False, True), (60.0, False, False)],
)
def test_a_model_that_is_worse_than_a_guess_is_said_to_be(found, greater, said):
    sentence = below_the_floor({"dev": {"x_y": 65.0}}, {"dev": {"x_y": found}}, "x_y", greater)
    assert (sentence is not None) == said
    if said:
        assert f"worse than a guess: x y of dev is {found:.2f}, of the guess 65.00" in sentence


def recipe(folder, words, **sections):
    records = [{"tokens": words, "tags": ["x", "y"] * (len(words) // 2)}] * 8
    text = "\n".join(json.dumps(record) for record in records)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    data = {"format": "jsonl", "train": str(folder / "train.jsonl"), "dev": str(folder / "train.jsonl")}
    content = {
        "name": "x",
        "run_dir": str(folder / "run"),
        "data": data,
        "model": {"path": str(folder / "base")},
    }
    return Recipe.model_validate(content | sections)


def test_tokenizer_that_does_not_know_the_data_is_refused(tmp_path):
    save(BY_NAME["BERT"], tmp_path / "base", num_labels=2)
    known, unknown = [f"w{i}" for i in range(10, 18)], ["ä", "ö"]
    Workload(recipe(tmp_path, known + unknown))  # 2 of 10
    message = (
        r"base knows too little of the data: 33% of the sub-words of train .*model\.extend_vocabulary, or"
    )
    with pytest.raises(UserError, match=message):
        Workload(recipe(tmp_path, [*known[:4], *unknown]))


def test_characters_that_are_known_alone_are_no_remedy(tmp_path):
    texts = "\n".join(["nei5 sik6 zo2 faan6 mei6"] * 8)  # the ELECTRA has letters, but not within a word
    (tmp_path / "train.txt").write_text(texts, encoding="utf-8")
    data = {"format": "text", "train": str(tmp_path / "train.txt"), "dev": str(tmp_path / "train.txt")}
    content = {
        "name": "x",
        "data": data,
        "task": {"name": "masked_lm"},
        "model": {"path": "cantonese-electra"},
    }
    with pytest.raises(
        UserError, match=r"100% of the sub-words of train .* a model of its script, or for tag"
    ):
        Workload(Recipe.model_validate(content))


@pytest.mark.slow
def test_a_run_shows_the_floor_and_says_where_it_is_below(tmp_path, capfd):
    save(BY_NAME["BERT"], tmp_path / "base", num_labels=2)
    sections = {"optimizer": {"lr": 1e-9}, "train": {"epochs": 1}}
    train(recipe(tmp_path, [f"w{i}" for i in range(10, 18)], **sections))
    out, err = capfd.readouterr()
    assert "dev floor" in out
    assert "the model is worse than a guess: token accuracy of dev is" in err
    assert "dev floor" in (tmp_path / "run/model/README.md").read_text(encoding="utf-8")


def test_folder_without_tokenizer_or_weights_is_refused(tmp_path):
    save(BY_NAME["BERT"], tmp_path / "a", num_labels=2)
    (tmp_path / "b").mkdir()
    for file in (tmp_path / "a").iterdir():
        if not file.name.startswith("tok"):
            (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "a" / "model.safetensors").unlink()
    for name, message in (
        ("b", "it has no tokenizer of its own, expected a tokenizer.json beside the model"),
        ("a", "model.pretrained=false starts it at random"),
    ):
        with pytest.raises(UserError) as error:
            ModelConfig(path=str(tmp_path / name)).load(AutoModelForTokenClassification, 0, {"num_labels": 2})
        assert message in str(error.value)


def test_tokenizer_whose_unknown_token_ends_texts_is_not_refused(tmp_path):
    """GPT-2's is one token for both, and knows every byte: short texts are mostly ends."""
    save(BY_NAME["GPT-2"], tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"unk_token": "[EOS]", "bos_token": "[EOS]"}
    path.write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "text.txt").write_text("w10 w11\nw12\n", encoding="utf-8")
    data = {"format": "text", "train": str(tmp_path / "text.txt"), "dev": str(tmp_path / "text.txt")}
    model = {"path": str(tmp_path / "base")}
    content = {"name": "x", "task": {"name": "causal_lm"}, "data": data, "model": model}
    found = Workload(Recipe.model_validate(content))
    ends = found.tokenizer.backend.eos_token_id
    assert found.tokenizer.backend.unk_token_id == ends
    assert sum(s.input_ids.count(ends) for s in found.sequences) > 0.2 * found.lengths.sum()
