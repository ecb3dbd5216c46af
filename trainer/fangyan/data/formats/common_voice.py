"""The Cantonese sentences of Common Voice, from inside the package ``pycantonese``."""

from __future__ import annotations

import json
from typing import ClassVar, Literal

import pydantic
from typing_extensions import override

from fangyan.data.example import Example, Splits
from fangyan.data.formats.text import TextLines
from fangyan.errors import UserError
from fangyan.packages import package_folder


class CommonVoice(TextLines):
    """The 9,444 sentences that Common Voice has people read in Cantonese (MPL 2.0).

    Other files of sentences, one per line, can be scored by a run of it.
    """

    format: Literal["common_voice"] = "common_voice"
    corpus: ClassVar[str | None] = "the Cantonese sentences of Common Voice, MPL 2.0"
    licence: ClassVar[str | None] = "mpl-2.0"
    language: ClassVar[str | None] = "yue"

    @pydantic.model_validator(mode="after")
    def _one_list(self) -> CommonVoice:
        if self.named():
            raise ValueError("common_voice is one list of sentences; expected no train, and fractions")
        return self

    @override
    def load_named(self) -> Splits:
        """Return all of the sentences as train."""
        folder = package_folder(
            "pycantonese", "data.format: common_voice", "the sentences", "pip install pycantonese"
        )
        path = folder / "data" / "common_voice" / "sents.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected the sentences of pycantonese 5")
        sentences = json.loads(path.read_text(encoding="utf-8"))
        return {
            "train": [Example({"text": text}, f"{path.name}[{i}]", text) for i, text in enumerate(sentences)]
        }
