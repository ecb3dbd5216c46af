"""Parquet files and data sets of Hugging Face, by the package ``datasets``."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from fangyan.data.compression import suffix
from fangyan.data.example import Example
from fangyan.data.formats.messages import ALPACA, SHAREGPT
from fangyan.data.formats.records import RecordsConfig
from fangyan.errors import UserError
from fangyan.suggestions import file_like


class Datasets(RecordsConfig):
    """Parquet files, folders of ``save_to_disk``, or ``NAME:SPLIT`` and ``NAME:SUBSET:SPLIT`` on the Hub."""

    format: Literal["datasets"] = "datasets"

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the rows of a data set, which are read as they come; see :class:`DataConfig`."""
        return self._read(path, True)

    @override
    def read_unlabelled(self, path: Path) -> Iterator[Example]:
        return self._read(path, False)

    def _read(self, path: Path, labelled: bool) -> Iterator[Example]:
        rows = _open(path)
        names = rows.column_names
        wanted = [name for name in self._wanted(names) if name in names]
        for source, record in _records(rows.select_columns(wanted), path):
            example = self.example(record, source, labelled)
            if example is not None:
                yield example

    def _wanted(self, names: list[str]) -> list[str]:
        """Return the columns to read: not the others, which may be images."""
        if self.columns:
            more = (SHAREGPT, *ALPACA) if "messages" in self.columns else ()
            return [*self.columns.values(), *more]
        return ["tokens", "tags"] if "tokens" in names else ["text", "spans"]


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set with all of their columns, as :class:`Datasets` reads them."""
    return (record for _, record in _records(_open(path), path))


def _records(rows: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a data set, each with its place, and classes by their names."""
    classes = _class_names(rows.features)
    for number, row in enumerate(_readable(rows, path), start=1):
        source = f"{path}:{number}"
        yield source, {name: _named(value, classes.get(name), source) for name, value in row.items()}


def _open(path: Path) -> Any:
    """Return a data set: mapped from a folder, streamed otherwise."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            "data.format: datasets needs the package of this name, which is not installed; "
            "run: pip install datasets"
        )
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what is damaged is said once, below
    try:
        if path.is_dir():
            loaded = datasets.load_from_disk(str(path))
            if isinstance(loaded, datasets.DatasetDict):
                raise UserError(
                    f"{path}: has splits, expected one of {', '.join(f'{path}/{s}' for s in loaded)}"
                )
            return loaded
        if suffix(path) == ".parquet":
            if not path.is_file():
                raise UserError(f"{path}: no such file{file_like(path)}")
            return datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        name, *subset, split = str(path).split(":")
        if not name or len(subset) > 1:
            raise ValueError("expected a .parquet file, a folder, NAME:SPLIT or NAME:SUBSET:SPLIT")
        return datasets.load_dataset(name, *subset, split=split, streaming=True)
    except UserError:
        raise
    except Exception as error:  # of datasets, pyarrow or what they open
        raise _unreadable(path, error) from None


def _readable(rows: Iterable[dict[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    """Yield rows, whose files are read, and found damaged, as they come."""
    try:
        yield from rows
    except Exception as error:  # as above; what the reader of the rows raises does not come here
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be read by datasets: {' '.join(str(error).split())[:300]}")


def _class_names(features: Any) -> dict[str, list[str]]:
    """Return the names of the columns that hold numbers of classes."""
    found = {}
    for name, feature in (features or {}).items():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            found[name] = list(names)
    return found


def _named(value: Any, names: list[str] | None, source: str) -> Any:
    """Return classes by their names."""
    if names is None:
        return value
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, int) and 0 <= number < len(names) for number in numbers):
        raise UserError(f"{source}: class {str(value)[:60]}, expected numbers below {len(names)}")
    named = [names[number] for number in numbers]
    return named if isinstance(value, list) else named[0]
