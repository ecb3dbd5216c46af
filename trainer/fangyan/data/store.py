"""Examples that are larger than memory: in a file, read one at a time.

Small data stays a list. What is larger goes into an unnamed file in the cache folder, which vanishes with the
process, however it ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import weakref
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fangyan.data.example import Example
from fangyan.errors import UserError, free_space
from fangyan.progress import track

T = TypeVar("T")

# Bytes of examples as Python objects up to which they stay in memory: 10 MB of text, or half a million
# tokens with a tag each.
IN_MEMORY = 64_000_000


def cache_folder(path: str | None = None) -> Path:
    """Return the folder of tokenized data, by default where the freedesktop.org standard has caches."""
    if path is not None:
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fangyan"


def keep_examples(examples: Iterable[Example], cache: Path) -> Sequence[Example]:
    """Return examples as a list, or if they are more than :data:`IN_MEMORY`, as an :class:`ExampleFile`.

    Args:
        examples: read once.
        cache: folder of the file.

    Raises:
        UserError: if the disk takes no more.
    """
    stream = track(examples, "reading")
    first: list[Example] = []
    size = 0
    for example in stream:
        first.append(example)
        size += _size(example)
        if size > IN_MEMORY:
            return ExampleFile(chain(first, stream), cache)
    return first


@contextmanager
def writing_into(cache: Path) -> Iterator[None]:
    """Tell the user of the cache folder where it cannot be written."""
    try:
        yield
    except OSError as error:
        free = free_space(cache) / 1e9
        raise UserError(
            f"data.cache_dir: {cache} cannot be written ({error.strerror or error}; {free:.3f} GB are free "
            "there), expected a folder with room for the data and its sub-words"
        ) from error


def _size(example: Example) -> int:
    """Return the bytes of an example's fields in memory."""
    size = 200  # of the example itself, its dictionary and its source
    for value in example.fields.values():
        size += sys.getsizeof(value)
        if isinstance(value, list | tuple):
            size += sum(map(sys.getsizeof, value))
    return size


class FileSlices:
    """A file of which slices are read; it is closed with the object.

    Pages of a mapped file would count as memory of this process, and a seek would move the place of every
    process that shares the file.

    Args:
        descriptor: of the open file.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def __getitem__(self, span: slice) -> bytes:
        """Read the bytes from ``span.start`` to ``span.stop``."""
        pieces, left = [], span.stop - span.start
        while left and (piece := os.pread(self._descriptor, left, span.stop - left)):  # 2 GB at most
            pieces.append(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Rows(Sequence[T], ABC):
    """A sequence whose elements are made when they are asked for."""

    @abstractmethod
    def at(self, index: int) -> T:
        """Return an element; ``index`` is within bounds and not negative."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        """Return an element, or those of a slice."""
        found = range(len(self))[index]
        return [self.at(i) for i in found] if isinstance(found, range) else self.at(found)


class ExampleFile(Rows[Example]):
    """Examples in a file without a name, with 16 bytes of memory for each.

    Args:
        examples: read once.
        cache: folder of the file, made if there is none.

    Attributes:
        digest: of the examples' fields and order.
        groups: a hash of the group of each, uint64.
    """

    def __init__(self, examples: Iterable[Example], cache: Path):
        with writing_into(cache):
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache) as file:
                self._write(examples, file)
                self._content = FileSlices(os.dup(file.fileno()))

    def _write(self, examples: Iterable[Example], file: IO[bytes]) -> None:
        ends, groups, digest = array("q"), array("Q"), hashlib.blake2b(digest_size=16)
        end = 0
        for example in examples:
            fields = json.dumps(example.fields, ensure_ascii=False)
            digest.update(fields.encode("utf-8", "surrogatepass") + b"\n")
            group = hashlib.blake2b(example.group.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            groups.append(int.from_bytes(group, "little"))
            # Of a text the group is the text itself, which is not written twice.
            same = example.group == example.fields.get("text")
            rest = json.dumps([example.source, None if same else example.group], ensure_ascii=False)
            end += file.write(f"{fields}\n{rest}".encode("utf-8", "surrogatepass"))
            ends.append(end)
        file.flush()
        self.digest = digest.hexdigest()
        self.groups: NDArray[np.uint64] = np.frombuffer(groups, dtype=np.uint64)
        self._ends: NDArray[np.int64] = np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        """Return how many examples there are."""
        return len(self._ends)

    @override
    def at(self, index: int) -> Example:
        start = int(self._ends[index - 1]) if index else 0
        fields, _, rest = (
            self._content[start : int(self._ends[index])].decode("utf-8", "surrogatepass").partition("\n")
        )
        source, group = json.loads(rest)
        values = as_fields(json.loads(fields))
        return Example(values, source, values["text"] if group is None else group)


class Subset(Rows[Example]):
    """Some examples of an :class:`ExampleFile`.

    Args:
        examples: the file.
        indices: of the examples.
    """

    def __init__(self, examples: ExampleFile | Subset, indices: NDArray[np.integer]):
        self._file: ExampleFile = examples if isinstance(examples, ExampleFile) else examples._file
        self._indices: NDArray[np.uint32] = (
            indices.astype(np.uint32) if isinstance(examples, ExampleFile) else examples._indices[indices]
        )

    @property
    def digest(self) -> str:
        """Return a digest of the examples' fields and order."""
        return hashlib.blake2b(
            self._file.digest.encode() + self._indices.tobytes(), digest_size=16
        ).hexdigest()

    @property
    def groups(self) -> NDArray[np.uint64]:
        """Return a hash of the group of each."""
        return self._file.groups[self._indices]

    def __len__(self) -> int:
        """Return how many examples there are."""
        return len(self._indices)

    @override
    def at(self, index: int) -> Example:
        return self._file[int(self._indices[index])]


def as_fields(record: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an example from what JSON makes of them: tuples, where it has lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
