"""A recipe for a file that was guessed: few fields, and a comment on each that says why."""

from __future__ import annotations

import textwrap
from typing import Any

from fangyan.errors import UserError
from fangyan.first_run.guess import Guess
from fangyan.first_run.settings import WRITING, Model, given_model, learning, suitable_model
from fangyan.models.loading import SCRATCH
from fangyan.recipe import parse_recipe
from fangyan.yaml_text import inline_yaml, parse_yaml

# Where comments behind fields begin, and the longest line.
_BEHIND, _WIDTH = 35, 110
# Examples below which nothing is held out for a test.
_FEW = 100

# What a model learns in each task that a file can be guessed for.
TASKS = {
    "token_classification": "a tag for every token",
    "sequence_classification": "a class, several or a number for a text",
    "extractive_qa": "the part of a text that answers a question",
    "masked_lm": "hidden words of raw text; the model then learns another task",
    "causal_lm": "the next word of raw text",
    "instruction": "the assistant's answers in conversations",
}
_SCHEMES = {
    "segmentation": "auto takes your tags for words, which are scored as such",
    "plain": "auto takes your tags for plain labels, each scored by itself",
}
_OPTIONS = {
    "scheme": "plain: labels, each scored by itself; io: types of entities",
    "kind": "single_label: a class; regression: a number, of which one is more than another",
}
_RATE = "too high: the loss jumps; too low: it hardly falls"
_EPOCHS = "passes over train; too long: fewer; dev still gains in the last: more"
_BATCH = "in a step; too much memory: fewer"


def recipe_text(
    guess: Guess,
    name: str,
    train: str,
    dev: str | float | None = None,
    test: str | float | None = None,
    model: str | None = None,
    file: str = "recipe.yaml",
) -> str:
    """Return a commented recipe, which :func:`fangyan.recipe.load_recipe` reads.

    Args:
        guess: what the files are.
        name: of the run.
        train: the file to train on.
        dev: a file, or the fraction of train to hold out; None for a fraction that suits.
        test: as dev; None for a fraction too, or for none where examples are few.
        model: a folder, a name on the hub or of a packaged model, or ``scratch``; None for what suits.
        file: the recipe's own name, for its comments.

    Raises:
        UserError: if a value is none that a recipe takes, or no model suits and none is given.
    """
    suited = suitable_model(guess)
    chosen = suited if model is None or (suited and model == suited.path) else given_model(model)
    if chosen is None:
        raise UserError(
            f"--model: missing; {guess.task} begins with a pretrained model, expected its folder or its name "
            "on the hub"
        )
    sections = learning(guess, chosen.path)
    lines = [
        f"# Learns {TASKS[guess.task]}. Written by fangyan init.",
        f"#   fangyan check {file}      faults of the data; memory and time that training takes",
        f"#   fangyan train {file}      any field may be replaced: fangyan train {file} train.epochs=3",
        "# All fields and their meaning: fangyan train --help",
        _field("name", name, f"of the run, whose folder is runs/{name}", 0),
        "",
        *_task_lines(guess),
        "",
        *_data_lines(guess, train, dev, test),
        "",
        *_model_lines(chosen),
        "",
        *_learning_lines(chosen, sections),
    ]
    text = "\n".join(lines) + "\n"
    parse_recipe(parse_yaml(text), file)  # names and paths are the user's
    return text


def _field(key: str, value: Any, comment: str = "", indent: int = 2) -> str:
    """Return a line of a field, with what is said of it behind."""
    shown = f"{value:.1e}".replace("e-0", "e-") if key == "lr" else inline_yaml(value)
    line = f"{' ' * indent}{key}: {shown}"
    return f"{line:<{_BEHIND}} # {comment}" if comment else line


def _above(comment: str) -> list[str]:
    """Return a long comment as lines above a field."""
    return textwrap.wrap(comment, _WIDTH, initial_indent="  # ", subsequent_indent="  # ")


def _task_lines(guess: Guess) -> list[str]:
    lines = ["task:", _field("name", guess.task)]
    if guess.scheme is not None and "scheme" not in guess.options:
        says = _SCHEMES.get(guess.scheme, f"auto takes your tags for entities, in {guess.scheme}")
        lines.append(_field("scheme", "auto", says))
    lines += [_field(key, value, _OPTIONS[key]) for key, value in guess.options.items()]
    return lines


def _data_lines(guess: Guess, train: str, dev: str | float | None, test: str | float | None) -> list[str]:
    lines = ["data:", _field("format", guess.format["format"], "docs/data.md has all formats")]
    formats = [answer.guess.format for answer in guess.answers[1:]]
    others = {
        key: "".join(f", or {inline_yaml(each[key])}" for each in formats if key in each)
        for key in ("column", "columns")
    }
    comments = {
        "column": f"the tags to learn{others['column']}",
        "columns": f"what is where in the file{others['columns']}",
        "tokens": "what has a tag; predict cuts a text into these, words at spaces",
    }
    fields = {key: value for key, value in guess.format.items() if key != "format"}
    if guess.task == "token_classification":
        fields.setdefault("tokens", "words")
    lines += [_field(key, value, comments.get(key, "")) for key, value in fields.items()]
    few = guess.is_whole and guess.examples < _FEW
    if dev is None:
        dev = 0.05 if guess.task in WRITING and not few else 0.2 if few else 0.1
    if test is None and not few:
        test = 0.05 if guess.task in WRITING else 0.1
    says = "chooses the best epoch"
    if isinstance(dev, float):
        says = f"a share of train, or a file: {says}, and is not learnt"
    lines += [_field("train", train), _field("dev", dev, says)]
    if test is not None:
        says = "a share of train, or a file: " if isinstance(test, float) else ""
        lines.append(_field("test", test, f"{says}scored before and after training alone"))
    else:
        lines.append("  # test: FILE                      # scored before and after training alone")
    return lines


def _model_lines(model: Model) -> list[str]:
    lines = ["model:", *_above(model.why), _field("path", model.path)]
    if model.path == SCRATCH:
        lines.append(_field("size", "small", "too slow: tiny; base is more accurate, in 2.5 times the time"))
    return lines


def _learning_lines(model: Model, sections: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    adaptation, optimizer, train = (sections[name] for name in ("adaptation", "optimizer", "train"))
    if adaptation:
        comments = {
            "name": "small matrices learn beside frozen weights",
            "rank": "of the matrices: more learns more, and takes more memory",
            "alpha": "scales them by alpha / rank",
        }
        lines += [
            "adaptation:",
            *(_field(key, value, comments.get(key, "")) for key, value in adaptation.items()),
        ]
        lines += ["  # quantization: nf4               # too much memory: frozen weights in 4 bits", ""]
    elif model.path != SCRATCH:
        lines += [
            "# Too much memory: adaptation: {name: lora, rank: 16, alpha: 32}, and optimizer.lr of 1.0e-3",
            "",
        ]
    comments = {"lr": _RATE, "layer_decay": "the lower a layer, the less of its pretraining is undone"}
    lines += [
        "optimizer:",
        *(_field(key, value, comments.get(key, "")) for key, value in optimizer.items()),
        "",
    ]
    unit = "characters" if model.path == SCRATCH else "sub-words"
    comments = {
        "epochs": _EPOCHS,
        "batch_tokens": f"{unit} {_BATCH}",
        "token_masking": "hides a few tokens, against rare ones",
    }
    lines += ["train:", *(_field(key, value, comments.get(key, "")) for key, value in train.items())]
    if model.path != SCRATCH:
        lines += [
            "",
            "engine:",
            _field("precision", "auto", "16 bits on a GPU, which is faster; fp32 on a CPU"),
        ]
    return lines
