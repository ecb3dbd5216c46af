"""What a shell completes: recipes, their fields, run folders, formats. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

# Names of a folder that are looked at.
_MOST = 1000


def recipes(incomplete: str) -> Iterator[str]:
    """Yield the recipes that come with the package, YAML files, and folders that may have some."""
    names = sorted(path.stem for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    yield from _beginning(names, incomplete)
    for path in _paths(incomplete):
        if path.is_dir() or path.suffix in (".yaml", ".yml"):
            yield f"{path}/" if path.is_dir() else str(path)


def fields(incomplete: str) -> Iterator[str]:
    """Yield overrides of a recipe's fields: ``train.epochs=``.

    A field that is the only one left comes with its default too: a shell puts a space behind one alone.
    """
    from fangyan.recipe import describe_fields

    if "=" in incomplete:
        return
    known = {field.name: field for field in describe_fields()}
    found = list(_beginning(known, incomplete))
    yield from (f"{name}=" for name in found)
    if len(found) == 1 and known[found[0]].default != "required":
        yield f"{found[0]}={known[found[0]].default}"


def runs(incomplete: str) -> Iterator[str]:
    """Yield run folders and models: first those of ``runs``, else the folders on the way to one."""
    for path in [*(_paths("runs/") if "runs".startswith(incomplete) else ()), *_paths(incomplete)]:
        if any((path / name).is_file() for name in ("recipe.yaml", "config.json")):
            yield str(path)
        elif path.is_dir():
            yield f"{path}/"


def formats(incomplete: str) -> Iterator[str]:
    """Yield the formats of data."""
    from fangyan.data.formats import FORMATS

    return _beginning(FORMATS.members, incomplete)


def export_formats(incomplete: str) -> Iterator[str]:
    """Yield the formats of an export."""
    from fangyan.deployment import FORMATS

    return _beginning(FORMATS, incomplete)


def strategies(incomplete: str) -> Iterator[str]:
    """Yield the ways to select sentences."""
    from fangyan.selection.strategies import STRATEGIES

    return _beginning(STRATEGIES, incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> Iterator[str]:
    return (name for name in names if name.startswith(incomplete))


def _paths(incomplete: str) -> list[Path]:
    """Return the paths that begin with what is typed, without hidden ones."""
    begin = incomplete.rpartition("/")[2]
    place = Path(incomplete.removesuffix(begin))
    try:
        found = [path for path, _ in zip(place.iterdir(), range(_MOST), strict=False)]
    except OSError:
        return []
    return sorted(path for path in found if path.name.startswith(begin) and not path.name.startswith("."))
