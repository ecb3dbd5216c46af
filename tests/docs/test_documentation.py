"""Every code block of the documentation is run, or says why not and is checked; generated pages are fresh."""

import importlib.util
import json
import os
import re

import forked_command
import pytest
from documentation import ROOT, blocks, check_command, pages, run_in_fork, run_python

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
NORTH_SAMI = ["Máhtte/PROPN manai/VERB skuvlii/NOUN ./PUNCT", "Mii/PRON orrut/VERB dáppe/ADV ./PUNCT"]
SENTENCES = ["阿明 住 喺 香港 .", "我哋 去 中環 睇戲 .", "佢 喺 沙田 返工 .", "阿明 同 阿芬 去 旺角 ."]
NAMES = {"香港": "B-LOC", "中環": "B-LOC", "沙田": "B-LOC", "旺角": "B-LOC", "阿明": "B-PER", "阿芬": "B-PER"}


def name_of(page):
    return str(page.relative_to(ROOT))


def test_every_block_is_of_a_known_language():
    for page in pages():
        for block in blocks(page):
            assert block.language in ("python", "yaml", "bash", "text"), block.place


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_blocks_that_are_not_run_are_valid(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.language == "yaml":
            write_recipe(block, tmp_path)
        if block.reason is None:
            continue
        if block.language == "bash":
            for words in block.commands():
                check_command(words, block.place)
        elif block.language == "python":
            compile(block.text, block.place, "exec")


@pytest.mark.parametrize("page", [page for page in pages() if page.parent.name == "kernels"], ids=name_of)
def test_blocks_of_kernels_run(page, tmp_path):
    namespace = {"__name__": "block"}
    for block in blocks(page):
        if block.language == "python" and block.reason is None:
            run_python(block, namespace, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in pages() if page.parent.name != "kernels"], ids=name_of)
def test_blocks_run(page, tmp_path, monkeypatch, run):
    """In order, in one folder that has small data and models under the names that the page uses."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "block"}
    for block in blocks(page):
        if block.language == "yaml":
            write_recipe(block, tmp_path)
        if block.reason is not None:
            continue
        if block.language == "python" and "fangyan.train(" in block.text:
            run("python", block.text, block.place)  # a process group outlives a run
        elif block.language == "python":
            run_python(block, namespace, tmp_path)
        elif block.language == "bash":
            for words in block.commands():
                check_command(words, block.place)
                run("command", words, block.place)


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=name_of)
def test_examples_run(script, run):
    run("command", ["python", name_of(script)], name_of(script))


def test_recipe_reference_is_fresh():
    spec = importlib.util.spec_from_file_location("recipe_reference", ROOT / "docs" / "recipe_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.recipe_reference(), (
        "run: python docs/recipe_reference.py"
    )


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


def write_recipe(block, folder):
    from fangyan.training.staged_recipe import load_training

    assert block.file_name(), f"{block.place}: expected a first line such as # ner.yaml"
    path = folder / block.file_name()
    path.write_text(block.text, encoding="utf-8")
    load_training(path)


@pytest.fixture
def run(tmp_path, server):
    """Runs a command or Python code in a fork, in a folder with what the pages speak of."""
    write_data(tmp_path)
    write_models(tmp_path)

    def run(kind, content, place):
        output = tmp_path / ".output"
        process = server.Process(
            target=run_in_fork, args=(str(tmp_path), ENVIRONMENT, str(output), kind, content)
        )
        process.start()
        process.join(300)
        if process.is_alive():
            process.kill()
        written = output.read_text(encoding="utf-8")
        assert process.exitcode == 0, f"{place}: {content}\n{written[-3000:]}"

    return run


@pytest.fixture(scope="module")
def server():
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    context = forked_command.server()
    process = context.Process(target=int)
    process.start()
    process.join()
    os.environ.clear()
    os.environ.update(before)
    return context


def write_data(folder):
    """Sentences under the names of the pages' files: entities in CoNLL, words in CoNLL-U, and others."""
    lines = []
    for sentence in SENTENCES:
        lines += [f"{word} {NAMES.get(word, 'O')}" for word in sentence.split()] + [""]
    for name in ("train.conll", "test.conll"):
        (folder / name).write_text("\n".join(lines * 8), encoding="utf-8")
    for name in ("olo_kkpp-ud-train.conllu", "olo_kkpp-ud-test.conllu"):
        blocks = []
        for words in map(str.split, SENTENCES):
            tags = ["PROPN" if word in NAMES else "X" for word in words]
            rows = enumerate(zip(words, tags, strict=True), start=1)
            blocks.append("".join(f"{i}\t{word}\t_\t{tag}" + "\t_" * 6 + "\n" for i, (word, tag) in rows))
        (folder / name).write_text("\n".join(blocks), encoding="utf-8")
    for name in ("train", "sme-ud-train", "sme-ud-dev"):
        blocks = []
        for words in [sentence.split() for sentence in NORTH_SAMI] * 4:
            rows = enumerate((word.split("/") for word in words), start=1)
            blocks.append("".join(f"{i}\t{word}\t_\t{tag}" + "\t_" * 6 + "\n" for i, (word, tag) in rows))
        (folder / f"{name}.conllu").write_text("\n".join(blocks), encoding="utf-8")
    numbered = [f"{sentence.replace(' ', '')}{i}" for i in range(8) for sentence in SENTENCES]
    text = "\n".join(numbered)
    records = [{"text": line, "label": ["praise", "complaint"][i % 2]} for i, line in enumerate(numbered)]
    tweets = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (folder / "tweets.jsonl").write_text(tweets, encoding="utf-8")
    talks = [
        {"messages": [{"role": "user", "content": line}, {"role": "assistant", "content": line[::-1]}]}
        for line in numbered
    ]
    lines = "\n".join(json.dumps(talk, ensure_ascii=False) for talk in talks)
    (folder / "talks.jsonl").write_text(lines, encoding="utf-8")
    questions = [
        {
            "question": "住喺邊度",
            "context": line,
            "answers": [{"text": "香港", "start": 4}] if i % 4 == 0 else [],
        }
        for i, line in enumerate(numbered)
    ]
    asked = "\n".join(json.dumps(record, ensure_ascii=False) for record in questions)
    (folder / "questions.jsonl").write_text(asked, encoding="utf-8")
    (folder / "stories.txt").write_text(text, encoding="utf-8")


def write_models(folder):
    """Tiny random models, in folders that are named like the hub's."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    characters = sorted({c for sentence in SENTENCES for c in sentence} | set("0123456789 userasistnlm正差"))
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[EOS]", "[MASK]", *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        mask_token="[MASK]",
    )
    size = {"vocab_size": len(vocabulary), "hidden_size": 64, "intermediate_size": 128}
    size |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}
    bert = transformers.BertModel(transformers.BertConfig(**size))
    qwen = transformers.Qwen3Config(**size, num_key_value_heads=1, head_dim=32, eos_token_id=2)
    for name, model in (
        ("google-bert/bert-base-multilingual-cased", bert),
        ("hfl/chinese-roberta-wwm-ext", transformers.BertForMaskedLM(transformers.BertConfig(**size))),
        ("Qwen/Qwen3-0.6B", transformers.Qwen3ForCausalLM(qwen)),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
