"""YAML as recipes and overrides have it: plain values within bounds, whatever the text is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fangyan.errors import UserError

# What a recipe may hold: hand-written ones have a hundred values, and a tag set a thousand.
_LARGEST_TEXT = 1_000_000
_MOST_VALUES = 100_000
# Of 64 bits, as everything that takes one does.
_LARGEST_NUMBER = 1 << 63

# Characters of a number: reading one takes their square.
_LONGEST_NUMBER = 400

_FLOAT = re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 that reads 1e-3 as a number, as YAML 1.2 does, dates as strings, and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are all different."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"found duplicate key {key.value}", problem_mark=node.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _bounded(construct: Any) -> Any:
    def construct_number(loader: _Loader, node: Any) -> Any:
        if len(node.value) > _LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(
                problem=f"a number of {len(node.value):,} characters", problem_mark=node.start_mark
            )
        return construct(loader, node)

    return construct_number


_Loader.add_constructor("tag:yaml.org,2002:int", _bounded(_Loader.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _bounded(_Loader.construct_yaml_float))


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads back: strings that it takes for numbers are quoted."""


_Loader.yaml_implicit_resolvers = {
    character: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
    ]
    for character, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text: nothing in it is run, or read from the environment.

    Raises:
        yaml.YAMLError: if it is no YAML, or its values are out of bounds.
    """
    if len(text) > _LARGEST_TEXT:
        raise yaml.YAMLError(f"{len(text):,} characters, expected {_LARGEST_TEXT:,} at most")
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("values are nested too deep") from None
    except Exception as error:  # of PyYAML's constructors: !!bool x, !!map x, a number of 5,000 digits
        raise yaml.YAMLError(f"a value is not what its tag or form says ({type(error).__name__})") from None
    _count(tree, {})
    return tree


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: if it is not that.
    """
    try:
        if path.stat().st_size > 4 * _LARGEST_TEXT:  # bytes of a character
            raise yaml.YAMLError(f"{path.stat().st_size:,} bytes, expected {_LARGEST_TEXT:,} at most")
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}{yaml_error(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a YAML mapping of recipe fields")
    return content


def _count(value: Any, counted: dict[int, int]) -> int:
    """Return how many values a tree has, with each alias as often as it is used, and check each.

    Args:
        value: the tree.
        counted: by identity; 0 where it is not finished, and so holds itself.
    """
    if isinstance(value, list | tuple | dict | set):
        if id(value) not in counted:
            counted[id(value)] = 0
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            counted[id(value)] = 1 + sum(_count(part, counted) for part in parts)
        count = counted[id(value)]
        if count == 0:
            raise yaml.YAMLError("a value holds itself")
        if count > _MOST_VALUES:
            raise yaml.YAMLError(f"more than {_MOST_VALUES:,} values")
        return count
    if isinstance(value, int) and not -_LARGEST_NUMBER <= value < _LARGEST_NUMBER:
        raise yaml.YAMLError("a number of more than 64 bits")
    if isinstance(value, str):
        check_text(value)
    return 1


def check_text(text: str) -> None:
    """Refuse what no file can hold and no tokenizer reads.

    Raises:
        yaml.YAMLError: for half of a surrogate pair, as bytes of a command line become that are not UTF-8,
            and for NUL.
    """
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise yaml.YAMLError("NUL, or text that is not UTF-8")


def dump_yaml(tree: Any) -> str:
    """Return a tree as YAML that :func:`parse_yaml` reads back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def inline_yaml(value: Any) -> str:
    """Return a value as YAML on one line, which stands behind a key."""
    one_line = float("inf")
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=one_line
    )
    return text.removesuffix("\n").removesuffix("\n...")


def yaml_error(error: Exception) -> str:
    """Return what is wrong with a YAML text, after ``:line`` where that is known."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{f':{mark.line + 1}' if mark else ''}: not a YAML recipe: {reason[:200]}"
