"""What every source file of the project keeps to."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("trainer/fangyan", "kernels/fangyan_kernels", "bench", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def calls(tree, name):
    """Calls of a function or method; those of ``os`` are not of text files."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called, attribute = node.func, isinstance(node.func, ast.Attribute)
            if attribute and getattr(called.value, "id", None) == "os":
                continue
            if name == (called.attr if attribute else getattr(called, "id", None)):
                yield node


def is_binary(call):
    modes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return any(
        isinstance(mode, ast.Constant) and "b" in str(mode.value) and len(str(mode.value)) < 4
        for mode in modes
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_are_opened_with_an_encoding(path):
    """The default is the machine's, which need not hold a dialect's characters."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in ("open", "read_text", "write_text"):
        for call in calls(tree, name):
            if name == "open" and is_binary(call):
                continue
            given = any(keyword.arg == "encoding" for keyword in call.keywords)
            assert given, f"{path}:{call.lineno}: {name} without an encoding"


def test_no_module_of_the_trainer_is_above_400_lines_and_no_function_above_60():
    """A module that grows beyond this holds two things; a function that does wants a name for its parts."""
    for path in sorted((ROOT / "trainer" / "fangyan").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno}: {node.name}"
