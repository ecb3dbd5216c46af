"""What every section of a recipe is made of: pydantic models, and families of them."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Annotated, Any, get_args

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from fangyan.suggestions import did_you_mean

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
# YAML has lists only; the strict check wants a tuple.
Betas = Annotated[
    tuple[Fraction, Fraction],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]


# Characters that a terminal or another program would take for a command.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Bytes of a path on Linux, and folders within folders: Python makes them by recursion.
_LONGEST_PATH, _DEEPEST_PATH = 4095, 100


def _check_path(path: str) -> str:
    """Return a path with its home folder written out."""
    if not path:
        raise ValueError("found '', expected a name")
    if _CONTROL.search(path):
        raise ValueError(f"found {short(path)}, expected a name without control characters")
    if len(os.fsencode(path)) > _LONGEST_PATH or len(PurePath(path).parts) > _DEEPEST_PATH:
        raise ValueError(
            f"found a path of {len(path):,} characters, expected {_LONGEST_PATH:,} bytes and {_DEEPEST_PATH} "
            "folders at most"
        )
    return os.path.expanduser(path)


# A file, a folder, or a pattern of files. ~ at its beginning is the user's home folder; ./~ is not.
PathName = Annotated[str, AfterValidator(_check_path)]


def short(value: Any) -> str:
    """Return a value as a message shows it, whatever it is and however long."""
    return _SHORT.repr(value)[:80]


# Names in a message of pydantic's.
_QUOTED = r"'([^']*)'"
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class Config(BaseModel):
    """A section of the recipe, owned by the component that it configures; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring, which help and documentation show."""
        return (cls.__doc__ or "").strip().partition("\n")[0]


class OneOf:
    """A family of Configs, told apart by one field: a discriminated union with a default.

    Used as ``section: Annotated[BaseOfFamily, FAMILY]``. A member that joins the family is accepted by the
    recipe, shown by the help and built by the trainer without any other change.

    Args:
        members: subclasses of :class:`Config` whose field ``tag`` is a ``Literal`` of one name.
        tag: the field that names the member.
        default: name of the member meant where a recipe does not say; None requires the field.
    """

    def __init__(self, *members: type[Config], tag: str = "name", default: str | None = None):
        self.members = {_tag(member, tag): member for member in members}
        self.tag = tag
        self.default = default

    def default_member(self) -> Any:
        """Return the default member with its defaults."""
        return self.members[str(self.default)]()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept any member of the family, chosen by its tag."""
        choices = {name: handler.generate_schema(member) for name, member in self.members.items()}
        union = core_schema.tagged_union_schema(choices, discriminator=self.tag)
        return core_schema.no_info_before_validator_function(self._name, union)

    def _name(self, value: Any) -> Any:
        if isinstance(value, dict) and self.default is not None:
            return {self.tag: self.default, **value}
        return value


def family_of(field: pydantic.fields.FieldInfo) -> OneOf | None:
    """Return the family that a recipe's field is of, or None."""
    return next((item for item in field.metadata if isinstance(item, OneOf)), None)


def error_sentence(error: pydantic.ValidationError, root: type[Config]) -> str:
    """Return the first problem of a recipe in one sentence: field, what was found, what was expected.

    An unknown key comes first: it may be a misspelt one, which is then missing too.
    """
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    field, section, member = _walk(first["loc"], root)
    if first["type"] == "extra_forbidden":
        of = f" of {member}" if member else ""
        last = _shown(first["loc"][-1])
        if field.rpartition(".")[2] != last:  # one that is no name
            field = f"{field}.{last}" if field else last
        prefix = field.removesuffix(last)
        hint = did_you_mean(last, section.model_fields, prefix) or _elsewhere(last, root)
        return f"{field}: unknown key{of}; expected one of {', '.join(section.model_fields)}{hint}"
    if first["type"] == "missing":
        return f"{field}: missing; this field is required"
    if first["type"] == "union_tag_not_found":
        return f"{field}.{first['ctx']['discriminator'].strip(chr(39))}: missing; this field is required"
    if first["type"] == "union_tag_invalid":
        context = first["ctx"]
        tag = context["discriminator"].strip("'")
        hint = did_you_mean(str(context["tag"]), re.findall(_QUOTED, context["expected_tags"]))
        return (
            f"{field}.{tag}: found {short(context['tag'])}, expected one of {context['expected_tags']}{hint}"
        )
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{field}: {message}" if field else message
    hint = ""
    if first["type"] == "literal_error":
        hint = did_you_mean(str(first["input"]), re.findall(_QUOTED, first["ctx"]["expected"]))
    return f"{field}: {message[0].lower()}{message[1:]}, found {short(first['input'])}{hint}"


def _elsewhere(key: str, root: type[Config]) -> str:
    """Return the end of a sentence that names the field of another section that a key is the name of."""
    found = next((name for name in _field_names(root) if name.rpartition(".")[2] == key), None)
    return f"; did you mean {found}?" if found else ""


def _field_names(section: type[Config], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all fields within a section."""
    for name, field in section.model_fields.items():
        family = family_of(field)
        if family is not None:
            for member in family.members.values():
                yield from _field_names(member, f"{prefix}{name}.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from _field_names(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _shown(key: int | str) -> str:
    """Return a key of the user's as it is, or as Python writes it where it is odd."""
    text = str(key)
    return text if text.isprintable() and len(text) <= 60 else short(text)


def _tag(member: type[Config], field: str) -> str:
    """Return the one value of a ``Literal`` field."""
    return str(get_args(member.model_fields[field].annotation)[0])


def _walk(location: Iterable[int | str], section: type[Config]) -> tuple[str, type[Config], str | None]:
    """Return an error's dotted field without tags, the section that holds it, and the family's member."""
    names: list[str] = []
    member: str | None = None
    steps = iter(location)
    for step in steps:
        info = section.model_fields.get(str(step))
        if info is None:
            # An unknown key, the key of a mapping, which may be a dotted field, or the index of a list; a
            # plain union adds its branch to the location.
            is_name = isinstance(step, int) or all(part.isidentifier() for part in step.split("."))
            if is_name and step not in ("int", "str", "float", "list"):
                names.append(_shown(step))
            continue
        names.append(str(step))
        family = family_of(info)
        if family is not None:
            member = str(next(steps, ""))
            section = family.members.get(member, section)
        elif isinstance(info.annotation, type) and issubclass(info.annotation, Config):
            section, member = info.annotation, None
    return ".".join(names), section, member
