"""Tokenized data: flat arrays of numbers, in memory or in files that later runs find again.

Data in a file (:mod:`fangyan.data.store`) is tokenized by all cores into the cache folder, under a name that
follows from what was tokenized and how. Sequences are read from there one at a time.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

import fangyan
from fangyan.data.arrays import differences
from fangyan.data.example import Example
from fangyan.data.store import ExampleFile, FileSlices, Rows, Subset, writing_into
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence, WordAlignment
from fangyan.progress import progress
from fangyan.terminal import say_later

Arrays = Mapping[str, NDArray[Any]]
Tokenize = Callable[[Sequence[Example]], list[TokenizedSequence]]

# Examples that a process tokenizes at once.
_CHUNK = 2000
# Lists of a sequence that most tasks have not.
_OPTIONAL = ("segments", "targets", "characters")
# Elements of an array that a digest reads at once.
_PIECE = 1 << 20


class TokenStore(Rows[TokenizedSequence]):
    """Tokenized sequences, read one at a time.

    Args:
        arrays: by field: a value per sequence, or the values of all sequences and, as ``<field>.ends``, where
            those of each end. They need not be in memory: slices are read.

    Attributes:
        lengths: sub-words of each sequence, (S,), int32.
        num_valid: labels of each that are not ``IGNORE_INDEX``, (S,), int32.
    """

    def __init__(self, arrays: Mapping[str, Any]):
        self._arrays = arrays
        self._alignment = [field.name for field in fields(WordAlignment)] if "span" in arrays else []
        self.lengths = differences(arrays["input_ids.ends"][:])
        self.num_valid: NDArray[np.int32] = arrays["num_valid"][:]

    def __len__(self) -> int:
        """Return how many sequences there are."""
        return len(self.lengths)

    @override
    def at(self, index: int) -> TokenizedSequence:
        alignment = None
        if self._alignment:
            alignment = WordAlignment(**{name: self._value(name, index) for name in self._alignment})
        input_ids, labels, example = (self._value(name, index) for name in ("input_ids", "labels", "example"))
        more = {name: self._value(name, index) for name in _OPTIONAL if name in self._arrays}
        return TokenizedSequence(input_ids, labels, example, alignment, **more)

    def digest(self) -> str:
        """Return a digest of all sequences and their labels, short enough for a message."""
        found = hashlib.sha256()
        for name in sorted(self._arrays):
            array = self._arrays[name]
            for start in range(0, len(array), _PIECE):
                found.update(np.ascontiguousarray(array[start : start + _PIECE]).tobytes())
        return found.hexdigest()[:12]

    def _value(self, name: str, index: int) -> Any:
        ends = self._arrays.get(f"{name}.ends")
        if ends is None:
            return int(self._arrays[name][index : index + 1][0])
        *before, stop = ends[max(0, index - 1) : index + 1].tolist()
        values = self._arrays[name][before[0] if before else 0 : stop].tolist()
        return tuple(values) if name == "span" else values


def to_arrays(sequences: Sequence[TokenizedSequence]) -> dict[str, NDArray[Any]]:
    """Return sequences as the arrays of a :class:`TokenStore`: 8 bytes per sub-word, 4 per word.

    What the first sequence does not have, none has.
    """
    rows = [_row(sequence) for sequence in sequences]
    arrays: dict[str, NDArray[Any]] = {}
    for name, first in (rows[0] if rows else _row(TokenizedSequence([], [], 0))).items():
        values = [row[name] for row in rows]
        if isinstance(first, int):
            arrays[name] = np.array(values, dtype=np.int32)
        else:
            dtype = np.float32 if name == "targets" else np.int32
            arrays[name] = np.fromiter(chain.from_iterable(values), dtype)
            arrays[f"{name}.ends"] = np.array([len(row) for row in values], dtype=np.int64).cumsum()
    return arrays


def _row(sequence: TokenizedSequence) -> dict[str, Any]:
    row = {
        "input_ids": sequence.input_ids,
        "labels": sequence.labels,
        "example": sequence.example,
        "num_valid": sum(label != IGNORE_INDEX for label in sequence.labels),
    }
    row |= {name: values for name in _OPTIONAL if (values := getattr(sequence, name))}
    alignment = sequence.alignment
    if alignment is not None:
        row |= {field.name: getattr(alignment, field.name) for field in fields(alignment)}
    return row


def tokenize_all(tokenize: Tokenize, examples: Sequence[Example], how: str, cache: Path) -> TokenStore:
    """Return the sequences of all examples.

    Examples in a file are tokenized once by all cores, however many processes ask for them.

    Args:
        tokenize: returns the sequences of some examples, numbered from 0.
        examples: what to tokenize.
        how: everything that the result depends on beside the examples.
        cache: folder for the results of examples in a file.
    """
    if not isinstance(examples, ExampleFile | Subset):
        with progress("tokenizing"):
            return TokenStore(to_arrays(tokenize(examples)))
    # What the first examples become tells apart what ``how`` may not say, such as another version's rules.
    sample = to_arrays(tokenize(examples[:100]))
    digest = hashlib.blake2b(f"{fangyan.__version__} {examples.digest} {how}".encode(), digest_size=16)
    for name, values in sample.items():
        digest.update(name.encode() + values.tobytes())
    folder = cache / f"tokenized-{digest.hexdigest()}"
    with writing_into(cache), _lock(folder.with_suffix(".lock")):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            partial.mkdir(parents=True)
            _write(partial, _with_sequences(_tokenized_chunks(tokenize, examples)))
            partial.rename(folder)
    return TokenStore(_open(folder))


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file's lock, which the system releases however a process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        with say_later(f"waits for another process, which tokenizes the same data and holds {path}"):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tokenized_chunks(tokenize: Tokenize, examples: Sequence[Example]) -> Iterator[Arrays]:
    """Yield the arrays of successive chunks of examples, under a progress bar."""
    starts = range(0, len(examples), _CHUNK)
    with _processes(tokenize, examples) as pool, progress("tokenizing", len(examples)) as bar:
        for start, arrays in zip(starts, pool.map(_tokenize_chunk, starts), strict=True):
            arrays["example"] += start
            yield arrays
            bar.advance(min(_CHUNK, len(examples) - start))


@contextmanager
def _processes(tokenize: Tokenize, examples: Sequence[Example]) -> Iterator[Executor]:
    """Start a process per core, as a copy of this one: nothing is imported, sent or loaded again."""
    threads = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has a core
    try:
        with warnings.catch_warnings():
            # Of threads whose locks a copy would wait for; these tokenize, and use nothing of a thread's.
            warnings.simplefilter("ignore", DeprecationWarning)
            executor = ProcessPoolExecutor(
                len(os.sched_getaffinity(0)),
                multiprocessing.get_context("fork"),
                _set_work,
                (tokenize, examples),
            )
            with executor as pool:
                yield pool
    finally:
        if threads is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = threads


_work: tuple[Tokenize, Sequence[Example]]


def _set_work(tokenize: Tokenize, examples: Sequence[Example]) -> None:
    global _work
    # PR_SET_PDEATHSIG: the children of a killed process would wait for work forever, and hold its lock.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    _work = tokenize, examples


def _tokenize_chunk(start: int) -> dict[str, NDArray[Any]]:
    tokenize, examples = _work
    return to_arrays(tokenize(examples[start : start + _CHUNK]))


def _with_sequences(chunks: Iterator[Arrays]) -> Iterator[Arrays]:
    """Yield the chunks with sequences, since others have not all arrays; or one of those, if all are such."""
    empty: Arrays = {}
    has_any = False
    for arrays in chunks:
        if len(arrays["example"]):
            has_any = True
            yield arrays
        else:
            empty = arrays
    if not has_any:
        yield empty


def _write(folder: Path, chunks: Iterator[Arrays]) -> None:
    """Append chunks to a file per array, and write their types and lengths last."""
    totals: dict[str, int] = {}
    types: dict[str, str] = {}
    files: dict[str, IO[bytes]] = {}
    try:
        for arrays in chunks:
            if not files:
                files = {name: (folder / name).open("wb") for name in arrays}
                types = {name: values.dtype.str for name, values in arrays.items()}
            for name, values in arrays.items():
                base, _, kind = name.rpartition(".")
                before = totals.get(base, 0) - len(arrays[base]) if kind == "ends" else 0
                files[name].write((values + before if before else values).tobytes())
                totals[name] = totals.get(name, 0) + len(values)
    finally:
        for file in files.values():
            file.close()
    description = {name: {"dtype": types[name], "length": totals[name]} for name in types}
    (folder / "arrays.json").write_text(json.dumps(description, indent=1), encoding="utf-8")


def _open(folder: Path) -> dict[str, Any]:
    """Return the arrays of a folder, which stay in their files."""
    description = json.loads((folder / "arrays.json").read_text(encoding="utf-8"))
    return {name: ArrayFile(folder / name, **array) for name, array in description.items()}


class ArrayFile:
    """An array in a file, of which slices are read.

    Args:
        path: of the file.
        dtype: of its numbers.
        length: how many there are.
    """

    def __init__(self, path: Path, dtype: str, length: int):
        self._content = FileSlices(os.open(path, os.O_RDONLY))
        self._dtype = np.dtype(dtype)
        self._length = length

    def __getitem__(self, span: slice) -> NDArray[Any]:
        """Read the numbers of a slice, whose step is 1."""
        start, stop, _ = span.indices(self._length)
        size = self._dtype.itemsize
        return np.frombuffer(self._content[start * size : stop * size], self._dtype)
