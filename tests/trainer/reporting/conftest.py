"""A tagger of Cantonese and Hebrew that starts from nothing, and a page in a browser."""

import json
import random

import pytest
from browser import open_browser
from fangyan.recipe import Recipe
from fangyan.training.train import train

# What would be run, were it not escaped.
EVIL = '</script><img/src=x/onerror=document.title="broken">'
_WORDS = {
    "我哋": "PRON",
    "去": "VERB",
    "香港": "NOUN",
    "食": "VERB",
    "飯": "NOUN",
    "שלום": "NOUN",
    "הלך": "VERB",
}


def _sentences(count, seed):
    """Sentences of one script each, in which one tag of eight is another."""
    draw = random.Random(seed)
    for _ in range(count):
        is_hebrew = draw.random() < 0.4
        known = [word for word in _WORDS if ("\u0590" <= word[0] <= "\u05ff") == is_hebrew]
        tokens = [draw.choice(known) for _ in range(draw.randint(2, 12))]
        tags = [_WORDS[token] if draw.random() < 0.875 else "<b>X" for token in tokens]
        yield {"tokens": [*tokens, EVIL], "tags": [*tags, draw.choice(["NOUN", "VERB"])]}


@pytest.fixture(scope="session")
def tagger(tmp_path_factory):
    """A finished run: tests may read it but not change it."""
    folder = tmp_path_factory.mktemp("tagger")
    for name, count, seed in (("train", 120, 0), ("dev", 40, 1), ("test", 60, 2)):
        lines = [json.dumps(record, ensure_ascii=False) for record in _sentences(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = {
        "name": "廣東話-עברית",
        "task": {"name": "token_classification"},
        "data": {
            "format": "jsonl",
            **{name: str(folder / f"{name}.jsonl") for name in ("train", "dev", "test")},
        },
        "model": {"path": "scratch", "size": "tiny"},
        "train": {"epochs": 2, "batch_tokens": 256, "log_every": 1},
        "run_dir": str(folder / "run"),
    }
    return train(Recipe.model_validate(recipe)).folder


@pytest.fixture(scope="session")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def show(browser):
    """Open a file, and fail at the end for what the page asked for or complained of."""
    contexts, wrong = [], []

    def open_page(path, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url))
        page.goto(path.as_uri())
        assert wrong.pop(0) == page.url  # the page itself
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
