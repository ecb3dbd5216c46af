"""The sentences that one may label, and those that are labelled already."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fangyan.data.example import Example, Splits, read_lines
from fangyan.data.formats import parse_data
from fangyan.data.formats.records import PREDICTED
from fangyan.data.formats.sources import Sources
from fangyan.data.splits import TaggedDataConfig
from fangyan.data.store import cache_folder, keep_examples
from fangyan.errors import UserError
from fangyan.inference.run_data import data_section
from fangyan.tasks.predictor import Predictor
from fangyan.yaml_text import read_yaml


def read_pool(predictor: Predictor, file: Path, data: TaggedDataConfig | None) -> Sequence[Example]:
    """Return the examples of a file, without labels; if they are many, they stay in a file.

    Args:
        predictor: says what a line of text is cut into.
        file: to read.
        data: its format; None is texts, one per line, of which empty ones are skipped.

    Raises:
        UserError: naming the line that is not of the format, or if there is no example.
    """
    found = _texts(predictor, file) if data is None else data.read_unlabelled(file)
    examples = keep_examples(found, cache_folder(None if data is None else data.cache_dir))
    if not examples:
        raise UserError(f"{file}: no example in it, expected at least one")
    return examples


def _texts(predictor: Predictor, file: Path) -> Iterator[Example]:
    for number, line in read_lines(file):
        if line.strip():
            yield predictor.example(line, f"{file}:{number}")


class Labelled(NamedTuple):
    """What a run's data has labels of.

    Attributes:
        train: the examples that the model has learned from.
        held_out: those of its dev and test splits.
    """

    train: Sequence[Example] = ()
    held_out: Sequence[Example] = ()


NOTHING = Labelled()


def labelled_examples(run: Path, say: Callable[[str], None]) -> Labelled:
    """Return the examples of a run's data.

    Args:
        run: a run folder, or an exported model, which does not know what it was trained on.
        say: called with a message where they cannot be read, for then they may be selected again.
    """
    recipe = run / "recipe.yaml"
    if not recipe.is_file():
        say(f"{run}: a model without its run does not say what it was trained on: that may be selected again")
        return NOTHING
    try:
        splits = list(_splits(recipe))
    except UserError as error:
        say(f"the run's own data cannot be read, and may be selected again ({error})")
        return NOTHING
    train = [split["train"] for split in splits if "train" in split]
    held_out = [examples for split in splits for name, examples in split.items() if name != "train"]
    cache = cache_folder()
    return Labelled(*(keep_examples(chain.from_iterable(parts), cache) for parts in (train, held_out)))


def _splits(recipe: Path) -> Iterator[Splits]:
    """Yield the splits of each of a run's data sets, whose texts begin with no name of it here."""
    data = parse_data(data_section(recipe), str(recipe))
    seed = read_yaml(recipe).get("seed", 0)
    if not isinstance(data, Sources):
        yield data.load(seed)
        return
    for name, member in data.members().items():
        yield {"test": member.load_named()["train"]} if name in data.zero_shot else member.load(seed)


def unlabelled(example: Example) -> Example:
    """Return an example without its labels, which may be any."""
    fields = {name: value for name, value in example.fields.items() if name not in PREDICTED}
    return Example(fields, example.source, example.group)


def fresh(examples: Iterable[Example], labelled: Iterable[Example]) -> NDArray[np.int64]:
    """Return indices of the examples that are not labelled, the first of each that is there several times.

    White space does not count: a sentence may be segmented in one file, and not in another.

    Args:
        examples: to choose among.
        labelled: to leave out.

    Returns:
        Indices in order, (N,).
    """
    keys, first = np.unique(_keys(examples), return_index=True)
    indices: NDArray[np.int64] = np.sort(first[~np.isin(keys, _keys(labelled))])
    return indices


def _keys(examples: Iterable[Example]) -> NDArray[np.uint64]:
    """Return a hash of each example's text: of a million examples 8 MB."""
    keys = array("Q")
    for example in examples:
        digest = hashlib.blake2b(key_of(example).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        keys.append(int.from_bytes(digest, "little"))
    return np.frombuffer(keys, dtype=np.uint64)


def key_of(example: Example) -> str:
    """Return an example's text without white space; of a pair, both with a tab between them."""
    fields = example.fields
    texts = ["".join(fields["tokens"])] if "tokens" in fields else [fields["text"], fields.get("pair", "")]
    return "\t".join("".join(text.split()) for text in texts)
