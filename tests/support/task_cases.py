"""A tiny model and a few examples for each task: what whole runs of it are tested with."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from fangyan.data.tokenization import IGNORE_INDEX
from model_families import BY_NAME, save

WORDS = 60


@dataclass(frozen=True)
class TaskCase:
    """A task on a tiny model.

    Attributes:
        name: for people.
        family: of the model; see :mod:`model_families`. None starts from nothing.
        task: the recipe's section.
        records: of the JSON lines that it is trained on.
        check: compares what the trained model predicts with plain transformers, given the run's predictor,
            and a model and a tokenizer of transformers.
        auto_model: class of transformers that loads the export.
        data: the recipe's section, beside the files.
        train: more fields of the recipe's section.
        labels: makes what transformers' class takes for labels, or its arguments for them, of sequences, by a
            function that pads rows.
        ranks: of two ranks: the stage of ZeRO, and whether they train an adapter.
        saved_as: class of transformers whose weights training begins with, by default a tagger's.
    """

    name: str
    family: str | None
    task: dict
    records: Callable[[], list[dict]]
    check: Callable
    auto_model: str
    data: dict
    train: dict
    labels: Callable
    ranks: tuple[int, bool]
    saved_as: str | None = None

    def recipe(self, folder: Path, layers: int = 2, **sections):
        """Write a model of some layers and data into a folder; return a recipe of two epochs."""
        if not (folder / "base").exists():
            (folder / "base").mkdir()
            saved = self.saved_as and getattr(transformers, self.saved_as)
            if self.family is not None:
                sizes = {"num_labels": 2, "hidden_dropout_prob": 0.1, "num_hidden_layers": layers}
                save(BY_NAME[self.family], folder / "base", saved, **sizes)
            lines = [json.dumps(record, ensure_ascii=False) for record in self.records()]
            (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
            (folder / "dev.jsonl").write_text("\n".join(lines[:10]), encoding="utf-8")
        files = {name: str(folder / f"{name}.jsonl") for name in ("train", "dev")}
        train = {
            "epochs": 2,
            "batch_tokens": 256,
            "log_every": 1,
            "checkpoint_every": 2,
            "keep_checkpoints": 99,
            "report": False,
        }
        nothing = {"path": "scratch", "size": "base"}  # several networks side by side
        recipe = {
            "name": "tiny",
            "task": self.task,
            "data": {"format": "jsonl", **files, **self.data},
            "model": {"path": str(folder / "base")} if self.family else nothing,
            # AdamW divides by a gradient's size: without this rounding alone grows in a few steps.
            "optimizer": {"lr": 1e-2, "eps": 1e-4},
            "schedule": {"warmup": 0.0},
            "train": {**train, **self.train},
        }
        for name, fields in sections.items():
            recipe[name] = {**recipe.get(name, {}), **fields} if isinstance(fields, dict) else fields
        return recipe


def words(draw, least=3, most=20):
    return [f"w{draw.randint(10, WORDS)}" for _ in range(draw.randint(least, most))]


def texts(label, pairs=False):
    """Texts whose labels follow from a word in them."""
    draw = random.Random(0)
    records = []
    for _ in range(120):
        chosen = words(draw)
        record = {"text": " ".join(chosen), "label": label(chosen)}
        if pairs:
            record["pair"] = " ".join(words(draw))
        records.append(record)
    return records


def check_texts(predictor, model, tokenizer, probe=("w10 w11 w12 w13", "w50 w20")):
    """The head's outputs of each text alone, by the tokenizer as it is."""
    for text, found in zip(probe, predictor.predict(probe), strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(*text.split("\t"), return_tensors="pt")).logits[0].double()
        kind = model.config.problem_type
        if kind == "regression":
            assert abs(found.label - float(logits)) < 1e-4
            continue
        probabilities = logits.softmax(-1) if kind == "single_label_classification" else logits.sigmoid()
        for i, probability in enumerate(probabilities.tolist()):
            assert abs(found.probabilities[model.config.id2label[i]] - probability) < 1e-4


def check_pairs(predictor, model, tokenizer):
    check_texts(predictor, model, tokenizer, ("w10 w11\tw12 w13", "w50\tw20 w31"))


def _labels_of_texts(sequences, rows):
    del rows
    return torch.tensor([sequence.targets or max(sequence.labels) for sequence in sequences])


def _labels_of_subwords(sequences, rows):
    return rows([sequence.labels for sequence in sequences], IGNORE_INDEX)


def _is_low(chosen):
    return "low" if int(chosen[0][1:]) < (WORDS + 10) // 2 else "high"


def _several(chosen):
    return [name for name, word in (("a", 0), ("b", 1), ("c", -1)) if int(chosen[word][1:]) % 2]


def _texts(name, family, label, ranks, task=None, **fields):
    return TaskCase(
        name,
        family,
        {"name": "sequence_classification", **(task or {})},
        lambda: texts(label, pairs="pair" in fields.get("columns", {})),
        check_pairs if "columns" in fields else check_texts,
        "AutoModelForSequenceClassification",
        fields,
        {},
        _labels_of_texts,
        ranks,
    )


def sentences():
    """Texts in which each word says what comes next."""
    draw = random.Random(0)
    firsts = [draw.randint(10, WORDS) for _ in range(120)]
    return [{"text": " ".join(f"w{10 + (first + i) % 50}" for i in range(9))} for first in firsts]


def check_gaps(predictor, model, tokenizer):
    text = "w20 [MASK] w22 w23 [MASK] w25"
    (found,) = predictor.predict([text])
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[0].double()
    places = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
    assert len(found.candidates) == len(places) == 2
    for place, candidates in zip(places, found.candidates, strict=True):
        shares = logits[place].softmax(-1)
        for token, share in candidates:
            assert abs(share - float(shares[tokenizer.convert_tokens_to_ids(token)])) < 1e-4
    first, second = (candidates[0][0] for candidates in found.candidates)
    assert found.filled == f"w20 {first} w22 w23 {second} w25"


def _gaps(name, family, ranks, saved_as=None):
    auto_model, task = "AutoModelForMaskedLM", {"name": "masked_lm", "mask_rate": 0.2}
    return TaskCase(
        name, family, task, sentences, check_gaps, auto_model, {}, {}, _labels_of_subwords, ranks, saved_as
    )


def check_words(predictor, model, tokenizer):
    """The words' logits in the gap, of each text alone."""
    texts = ("w10 w11 w12", "w50 [MASK] w20")
    for text, found in zip(texts, predictor.predict(texts), strict=True):
        encoded = tokenizer(f"{text} w72 [MASK] w73", return_tensors="pt")
        with torch.no_grad():
            logits = model(**encoded).logits[0, -2]
        words = tokenizer.convert_tokens_to_ids(["w70", "w71"])
        for label, probability in zip(("low", "high"), logits[words].softmax(-1).tolist(), strict=True):
            assert abs(found.probabilities[label] - probability) < 1e-4


def conversations():
    """Two turns each; the answer repeats the question's words backwards."""
    draw = random.Random(0)
    records = []
    for _ in range(80):
        messages = []
        for _ in range(2):
            question = words(draw, 2, 4)
            messages.append({"role": "user", "content": " ".join(question)})
            messages.append({"role": "assistant", "content": " ".join(reversed(question))})
        records.append({"messages": messages})
    return records


def check_answers(predictor, model, tokenizer):
    """Greedy answers to a question, by the exported tokenizer's chat template and generation settings."""
    for question in ("w20 w30", "w44 w12 w13"):
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        ids = encoded["input_ids"]
        ends = predictor._end_ids  # of an adapter, the base's generation settings know nothing
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        expected = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        (found,) = predictor.predict([question], max_new_tokens=6)
        assert found.strip() == expected.strip()
        several = predictor.answer_all([[{"role": "user", "content": question}]] * 2, 6)
        assert [text.strip() for text in several] == [expected.strip()] * 2


def _answers(name, family, ranks, task=None):
    task = {"name": "instruction", **(task or {})}
    auto_model = "AutoModelForCausalLM"
    return TaskCase(
        name, family, task, conversations, check_answers, auto_model, {}, {}, _labels_of_next_subwords, ranks
    )


def _labels_of_next_subwords(sequences, rows):
    """What transformers shifts by itself."""
    return rows([[IGNORE_INDEX, *sequence.labels[:-1]] for sequence in sequences], IGNORE_INDEX)


def tagged():
    """Words whose tags follow from their endings."""
    draw = random.Random(0)
    records = []
    for _ in range(100):
        tokens = ["".join(draw.choices("abcdeé", k=draw.randint(1, 6))) for _ in range(draw.randint(2, 8))]
        records.append(
            {"tokens": tokens, "tags": ["VOWEL" if token[-1] in "aeé" else "OTHER" for token in tokens]}
        )
    return records


def check_tags(predictor, model, tokenizer):
    """Of raw words, by transformers' own alignment of words."""
    text = "abba deé c ebx"
    encoded = tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        best = model(**encoded).logits[0].argmax(-1).tolist()
    words = encoded.word_ids()
    expected = [model.config.id2label[best[words.index(i)]] for i in range(4)]
    (found,) = predictor.predict([text])
    assert list(found.tags) == expected


def questions(with_none):
    """The answer follows the question's word in the context; without the word there is none.

    All are of one length: the loss of transformers' classes also runs over the padding of a batch.
    """
    draw = random.Random(0)
    records = []
    for i in range(120):
        context = draw.sample(range(10, WORDS), 12)
        place = draw.randrange(len(context) - 1)
        asked = 61 if with_none and i % 4 == 0 else context[place]
        shown = [f"w{number}" for number in context]
        start = len(" ".join(shown[: place + 1])) + 1
        found = [] if asked == 61 else [{"text": shown[place + 1], "start": start}]
        records.append({"question": f"w{asked}", "context": " ".join(shown), "answers": found})
    return records


def check_spans(predictor, model, tokenizer):
    """The best span of each context, by the tokenizer as it is."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    for question, context in (("w20", "w11 w20 w31 w12"), ("w12", "w50 w20 w13 w44 w45")):
        encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            outputs = model(**encoded)
        start, end = (
            getattr(outputs, name)[0].double().log_softmax(-1) for name in ("start_logits", "end_logits")
        )
        inside = [i for i, owner in enumerate(encoded.sequence_ids(0)) if owner == 1]
        spans = {(i, j): float(start[i] + end[j]) for i in inside for j in inside if i <= j}
        (first, last), best = max(spans.items(), key=lambda item: item[1])
        (found,) = predictor.predict([f"{question}\t{context}"])
        if predictor.task.may_be_none and float(start[0] + end[0]) > best:
            assert (found.answer, found.start) == ("", -1)
            best = float(start[0] + end[0])
        else:
            place = offsets[first][0]
            assert (found.answer, found.start) == (context[place : offsets[last][1]], place)
        assert abs(found.score - float(torch.tensor(best).exp())) < 1e-4


def _labels_of_spans(sequences, rows):
    del rows
    starts, ends = torch.tensor([sequence.targets for sequence in sequences]).long().unbind(1)
    return {"start_positions": starts, "end_positions": ends}


def _spans(name, family, ranks, with_none):
    auto_model, task = "AutoModelForQuestionAnswering", {"name": "extractive_qa"}
    return TaskCase(
        name,
        family,
        task,
        lambda: questions(with_none),
        check_spans,
        auto_model,
        {},
        {"batch_tokens": 512},
        _labels_of_spans,
        ranks,
    )


CASES = [
    TaskCase(
        "tags from nothing",
        None,
        {"name": "token_classification"},
        tagged,
        check_tags,
        "AutoModelForTokenClassification",
        {},
        {},
        _labels_of_subwords,
        (3, False),
    ),
    _answers("answers", "Qwen 3", (2, False), {"system": "w70 w71"}),
    _answers("answers, learned positions", "GPT-2", (3, True)),
    _gaps("hidden words", "BERT", (3, True), "AutoModelForMaskedLM"),
    _gaps("hidden words, new head", "ELECTRA", (2, False)),
    TaskCase(
        "words for classes",
        "BERT",
        {
            "name": "cloze",
            "pattern": "{text} w72 {gap} w73",
            "words": {"low": "w70", "high": "w71"},
        },
        lambda: texts(_is_low),
        check_words,
        "AutoModelForMaskedLM",
        {},
        {},
        _labels_of_subwords,
        (3, True),
        "AutoModelForMaskedLM",
    ),
    _texts("one class", "BERT", _is_low, (2, False)),
    _texts("one class, causal", "Qwen 3", _is_low, (3, True), {"class_weights": "balanced"}),
    _texts("several classes", "ELECTRA", _several, (3, False), {"class_weights": {"a": 2.0}}),
    _texts("a number of pairs", "XLM-RoBERTa", lambda chosen: float(len(chosen)) / 20, (2, True),
           columns={"text": "text", "pair": "pair", "label": "label"}),
    _spans("spans", "BERT", (3, True), with_none=False),
    _spans("spans or none, causal", "GPT-2", (2, False), with_none=True),
]  # fmt: skip
