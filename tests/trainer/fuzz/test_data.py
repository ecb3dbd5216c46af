"""Files of every format: they are read, learned from and written back, or refused in one sentence."""

import random
from pathlib import Path

import fangyan
import pytest
import tiny_exports
from fangyan.data.formats import parse_data
from fangyan.data.splits import read_examples, write_examples
from fangyan.data.tokenization import Tokenizer
from fangyan.first_run.guess import guess
from fangyan.tasks.causal_lm.task import CausalLMConfig
from fangyan.tasks.extractive_qa.task import ExtractiveQAConfig
from fangyan.tasks.token_classification.config import TokenClassificationConfig
from malformed import json_value, mutate, mutate_bytes

CONLL = "我\tB-n\n食\tB-v\n飯\tB-n\n\n今\tB-t\n日\tI-t\n"
CONLLU = (
    "# sent_id = 1\n# text = 我食飯\n1\t我\t我\tPRON\tr\tPerson=1\t2\tnsubj\t_\tSpaceAfter=No\n"
    "2-3\t食飯\t_\t_\t_\t_\t_\t_\t_\t_\n2\t食\t食\tVERB\tv\t_\t0\troot\t_\t_\n"
    "3.1\t x\t_\t_\t_\t_\t_\t_\t_\t_\n\n"
)
JSONL = (
    '{"tokens": ["我", "食"], "tags": ["B-n", "B-v"], "id": 1}\n'
    '{"text": "Jo wohnt in Bern", "spans": [{"start": 12, "end": 16, "label": "LOC"}]}\n'
)
CHAT = (
    "@Begin\n*XXA:\t我 食飯 [/] <a b> [//] .\n%mor:\tpro|ngo5 v|sik6faan6 n|a n|b .\n*XXB:\t好\n\t呀 !\n"
    "%mor:\tadj|hou2 sfp|aa3 !\n@End\n"
)
CSV = 'tokens,tags\n"我 食","B-n B-v"\n"[""飯"", ""。""]","[""B-n"", ""B-x""]"\n'
QUESTIONS = (
    '{"question": "去邊", "context": "佢去旺角", "answers": [{"text": "旺角", "start": 2}]}\n'
    '{"question": "去邊", "context": "佢去旺角", "answers": {"text": [], "answer_start": []}}\n'
)
SQUAD = (
    '{"data": [{"title": "x", "paragraphs": [{"context": "佢去旺角", "qas": [{"question": "去邊",\n'
    '"answers": [{"text": "旺角", "answer_start": 2}], "is_impossible": false, "id": "1"}]}]}]}\n'
)
TEXT = "今日天氣好好\n我哋去飲茶\n\nngóh deih heui\n"
# Format, ending, a right file, fields.
FILES = [
    ("conll", "conll", CONLL, {}),
    ("conll", "conll", CONLL.replace("\t", " "), {"separator": " "}),
    ("conll", "tsv", "x\t我\ty\tB-n\n", {"columns": {"token": 2, "tag": 4}}),
    ("conllu", "conllu", CONLLU, {"column": "upos"}),
    ("conllu", "conllu", CONLLU, {"column": "feats.Person"}),
    ("jsonl", "jsonl", JSONL, {}),
    ("jsonl", "jsonl", JSONL, {"tokens": "characters"}),
    ("jsonl", "jsonl", '{"s": "食飯"}\n', {"columns": {"text": "s"}}),
    ("csv", "csv", CSV, {}),
    ("csv", "tsv", "text\tspans\nBern\t[]\n", {"quoted": False}),
    ("chat", "cha", CHAT, {}),
    ("chat", "cha", CHAT, {"tokens": "characters"}),
    ("text", "txt", TEXT, {}),
    ("jsonl", "jsonl", QUESTIONS, {"columns": {name: name for name in ExtractiveQAConfig.fields}}),
    ("squad", "json", SQUAD, {}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def tagger(folder):
    return fangyan.load(tiny_exports.tagger(folder / "tagger"))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(tiny_exports.tokenizer())


def content(draw, right, format):
    """The bytes of a file."""
    change = draw.randint(0, 4)
    if change == 0:
        return mutate_bytes(draw, right.encode())
    if change == 1 and format == "jsonl":
        fields = (
            f'"{draw.choice(("tokens", "tags", "text", "spans"))}": {json_value(draw)}' for _ in range(2)
        )
        return ("{" + ", ".join(fields) + "}\n").encode("utf-8", "surrogatepass")
    if change == 2:
        right = right * draw.choice((2, 50))
    return mutate(draw, right).encode("utf-8", "surrogatepass")


def learn(data, file, folder, tokenizer):
    """What a run does with data before its first step."""
    examples = data.read_files([str(file)])
    write_examples(folder / "written.jsonl", examples)
    assert [e.fields for e in read_examples(folder / "written.jsonl")] == [e.fields for e in examples]
    if not examples:
        return
    configs = {("text",): CausalLMConfig(), ExtractiveQAConfig.fields: ExtractiveQAConfig()}
    config = configs.get(data.provided, TokenClassificationConfig())
    if not set(config.fields) <= set(data.provided):
        return
    splits = {"train": examples, "dev": examples}
    task = config.build(splits, data)
    if isinstance(config, TokenClassificationConfig):
        task.subword = "first"
    list(task.findings(splits))
    for sequence in task.tokenize(examples, tokenizer, 64):
        assert len(sequence.input_ids) == len(sequence.labels) <= 64
        assert max(sequence.input_ids) < len(tokenizer.backend)


def test_data_file(number, tried, folder, tagger, tokenizer):
    draw = random.Random(f"data {number}")
    format, ending, right, fields = draw.choice(FILES)
    file = folder / f"a.{ending}"
    file.write_bytes(content(draw, right, format))
    if draw.random() < 0.05:
        file = file.rename(f"{file}.gz")
    tried(guess, file)
    data = parse_data({"format": format, "train": str(file), **fields}, "test")
    tried(learn, data, file, folder, tokenizer)
    if "tags" in data.provided and format in ("conll", "conllu", "jsonl"):
        tried(lambda: list(data.annotate(Path(file), tagger.annotate)))
