"""The trainer's layers import downwards, and what is quick to start stays so."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "trainer" / "fangyan"

# Each may import from its own floor's folder and from every floor below. CONTRIBUTING.md says why.
FLOORS = [
    ("errors", "suggestions"),
    ("config", "device", "environment", "files", "packages", "terminal", "yaml_text"),
    ("progress",),
    ("distributed", "trackers"),
    ("data",),
    ("models",),
    ("optimizers",),
    ("tasks", "objectives", "adaptation"),
    ("inference",),
    ("selection",),
    ("analysis",),
    ("reporting",),
    ("training", "recipe", "deployment", "serving"),
    ("prompting", "first_run"),
    ("ui",),
    ("cli",),
    ("__init__", "__main__"),
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def imports(path):
    """Top-level parts of the package that a module imports at any place in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module]
            if node.module == "fangyan":
                names = [f"fangyan.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "fangyan" and rest:
                yield rest.partition(".")[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_module_imports_from_its_own_floor_and_below(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imports(path):
        if other != own:
            below = FLOOR_OF[other] < FLOOR_OF[own]
            beside = {own, other} == {"training", "recipe"}
            assert below or beside, f"{own} imports {other}"


def test_every_part_has_a_floor():
    parts = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts == set(FLOOR_OF)


@pytest.mark.parametrize(
    ("modules", "slow"),
    [("fangyan, fangyan.cli", ["torch", "pydantic"]), ("fangyan.recipe", ["torch", "transformers"])],
)
def test_import_is_quick(modules, slow):
    """Help, and a mistake in a recipe, do not wait for libraries that take seconds."""
    names = [*slow, "deepspeed", "bitsandbytes"]
    code = f"import sys, {modules}; print([m for m in {names} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
