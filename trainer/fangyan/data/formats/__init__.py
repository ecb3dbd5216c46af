"""The formats that a recipe's ``data.format`` may name. Add a module here and register it below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from fangyan.config import Config, OneOf, error_sentence
from fangyan.data.formats.chat import Chat
from fangyan.data.formats.common_voice import CommonVoice
from fangyan.data.formats.conll import Conll
from fangyan.data.formats.conllu import Conllu
from fangyan.data.formats.csv import Csv
from fangyan.data.formats.datasets import Datasets
from fangyan.data.formats.hkcancor import HKCanCor
from fangyan.data.formats.jsonl import Jsonl
from fangyan.data.formats.sources import Sources
from fangyan.data.formats.squad import Squad
from fangyan.data.formats.text import Text
from fangyan.data.splits import DataConfig
from fangyan.errors import UserError

FORMATS = OneOf(
    HKCanCor,
    Conll,
    Conllu,
    Jsonl,
    Csv,
    Datasets,
    Chat,
    Squad,
    Text,
    CommonVoice,
    Sources,
    tag="format",
)


def parse_data(content: Mapping[str, Any], source: str) -> DataConfig:
    """Check the ``data`` of a recipe.

    Raises:
        UserError: naming the field, what was found and what was expected.
    """

    class Section(Config):
        data: Annotated[DataConfig, FORMATS]

    try:
        return Section.model_validate({"data": content}).data
    except pydantic.ValidationError as error:
        raise UserError(f"{source}: {error_sentence(error, Section)}") from None


def parse_other_data(content: Mapping[str, Any], source: str) -> DataConfig:
    """Check a section like ``data`` for data besides that of the run; see :func:`parse_data`."""
    data = parse_data(content, source)
    if data.replay.share:
        raise UserError(f"{source}: replay is given, expected it in data alone")
    if data.unlabelled is not None:
        raise UserError(f"{source}: unlabelled is given, expected it in data alone")
    return data


def with_defaults(data: Mapping[str, Any], needed: tuple[str, ...]) -> dict[str, Any]:
    """Return a section ``data`` with what its format has to be told for a task, where it does not say.

    Args:
        data: of a recipe, not checked yet.
        needed: fields of examples.
    """
    member = FORMATS.members.get(str(data.get("format")))
    if member is None or not issubclass(member, DataConfig):
        return dict(data)
    return {**member.defaults(needed), **data}
