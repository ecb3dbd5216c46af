"""From files to the train, dev and test parts of a data set."""

from __future__ import annotations

import random
from pathlib import Path

from fangyan.data import hkcancor
from fangyan.data.conll import read_conll
from fangyan.data.examples import Example
from fangyan.data.jsonl import read_jsonl
from fangyan.data.text import common_voice, read_text
from fangyan.errors import UserError
from fangyan.recipe import Data, Part

__all__ = ["Example", "load_parts", "read_files"]

Parts = dict[str, list[Example]]

# Of files; the sentences of common_voice are compared with those of other text files.
_READERS = {"conll": read_conll, "jsonl": read_jsonl, "text": read_text, "common_voice": read_text}


def load_parts(data: Data, seed: int) -> Parts:
    """The examples of ``train``, ``dev`` and, where the recipe has one, ``test``.

    Fractions are drawn by group (a conversation, or all copies of one sentence), so that nothing
    held out is also trained on.

    Raises:
        UserError: for a missing file, a malformed line, an unknown conversation or an empty part.
    """
    named = {name: part for name in ("train", "dev", "test") if (part := getattr(data, name)) is not None}
    if data.format == "hkcancor":
        parts = _load_conversations(data, named)
    elif data.format == "common_voice":
        parts = {"train": common_voice()}
    else:
        parts = {
            name: read_files(part if isinstance(part, list) else [part], data)
            for name, part in named.items()
            if not isinstance(part, float)
        }
    for salt, name in enumerate(("test", "dev")):
        fraction = named.get(name)
        if isinstance(fraction, float):
            parts["train"], parts[name] = _hold_out(parts["train"], fraction, seed + salt)
    for name, examples in parts.items():
        if not examples:
            raise UserError(f"data.{name}: no sentence in it, expected at least one")
    return {name: parts[name] for name in ("train", "dev", "test") if name in parts}


def read_files(paths: list[str], data: Data) -> list[Example]:
    """The examples of some files of the recipe's format, in order."""
    examples: list[Example] = []
    for name in paths:
        path = Path(name)
        if data.format == "hkcancor":
            examples += hkcancor.read_conversation(path, data.tokens == "characters")
        else:
            examples += _READERS[data.format](path)
    return examples


def _load_conversations(data: Data, named: dict[str, Part]) -> Parts:
    folder = Path(data.path) if data.path else hkcancor.corpus_folder()
    known = sorted(path.stem for path in folder.glob("*.cha"))
    if not known:
        raise UserError(f"{folder}: no .cha file in it, expected the conversations of HKCanCor")
    listed = {
        name: [part] if isinstance(part, str) else part
        for name, part in named.items()
        if not isinstance(part, float)
    }
    for name, conversations in listed.items():
        for conversation in conversations:
            if conversation not in known:
                raise UserError(f"data.{name}: no conversation {conversation!r} in {folder}")
    held_out = {*listed.get("dev", []), *listed.get("test", [])}
    listed.setdefault("train", [name for name in known if name not in held_out])
    shared = held_out & set(listed["train"])
    if shared:
        raise UserError(f"data.train: conversation {min(shared)!r} is also held out")
    return {
        name: read_files([str(folder / f"{conversation}.cha") for conversation in conversations], data)
        for name, conversations in listed.items()
    }


def _hold_out(examples: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Moves whole groups out of ``examples`` until the fraction is reached."""
    groups = sorted({example.group for example in examples})
    random.Random(seed).shuffle(groups)
    sizes: dict[str, int] = {}
    for example in examples:
        sizes[example.group] = sizes.get(example.group, 0) + 1
    chosen: set[str] = set()
    taken = 0
    for group in groups:
        if taken >= fraction * len(examples):
            break
        chosen.add(group)
        taken += sizes[group]
    return (
        [example for example in examples if example.group not in chosen],
        [example for example in examples if example.group in chosen],
    )
