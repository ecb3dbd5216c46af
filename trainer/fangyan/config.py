"""What every section of a recipe is made of: pydantic models, and families of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
# YAML has lists only; the strict check wants a tuple.
Betas = Annotated[
    tuple[Fraction, Fraction],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]


class Config(BaseModel):
    """A section of the recipe, owned by the component that it configures; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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
    """Return the first problem of a recipe in one sentence: field, what was found, what was expected."""
    first = error.errors()[0]
    field, section = _walk(first["loc"], root)
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key{_of(section)}; expected one of {', '.join(section.model_fields)}"
    if first["type"] == "missing":
        return f"{field}: missing; this field is required"
    if first["type"] == "union_tag_not_found":
        return f"{field}.{first['ctx']['discriminator'].strip(chr(39))}: missing; this field is required"
    if first["type"] == "union_tag_invalid":
        context = first["ctx"]
        tag = context["discriminator"].strip("'")
        return f"{field}.{tag}: found {context['tag']!r}, expected one of {context['expected_tags']}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{field}: {message}" if field else message
    return f"{field}: {message[0].lower()}{message[1:]}, found {repr(first['input'])[:80]}"


def _of(section: type[Config]) -> str:
    """Name the member of a family that does not know a key."""
    for name in ("name", "format"):
        if name in section.model_fields and get_origin(section.model_fields[name].annotation) is Literal:
            return f" of {_tag(section, name)}"
    return ""


def _tag(member: type[Config], field: str) -> str:
    """Return the one value of a ``Literal`` field."""
    return str(get_args(member.model_fields[field].annotation)[0])


def _walk(location: Iterable[int | str], section: type[Config]) -> tuple[str, type[Config]]:
    """Return an error's dotted field, without the tags of families, and the section that holds it."""
    names: list[str] = []
    steps = iter(location)
    for step in steps:
        # A plain union adds its branch to the location: keep what names a field or an index.
        if isinstance(step, int) or str(step).isidentifier():
            names.append(str(step))
        info = section.model_fields.get(str(step))
        if info is None:
            continue
        family = family_of(info)
        if family is not None:
            section = family.members.get(str(next(steps, None)), section)
        elif isinstance(info.annotation, type) and issubclass(info.annotation, Config):
            section = info.annotation
    return ".".join(names), section
