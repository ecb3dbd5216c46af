"""The benchmarks' layers import downwards, and one module alone imports the trainer."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "bench" / "fangyan_bench"

# Each may import from its own folder and from every layer below.
LAYERS = [
    ("__init__", "rows", "trainer_access"),
    ("harness", "peers"),
    ("ops", "steps"),
    ("registry",),
    ("instructions", "serve"),
    ("static", "regression", "gpu"),
]
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}


def imported(path):
    """Full names of what a module imports at any place in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_from_its_own_folder_and_below(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package == "fangyan_bench":
            other = rest.partition(".")[0]
            assert other == own or LAYER_OF[other] < LAYER_OF[own], f"{own} imports {name}"
        assert package != "fangyan" or own == "trainer_access", f"{own} imports {name}"


def test_every_module_has_a_layer():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert parts == set(LAYER_OF)
