"""From files to the train, dev and test splits of a data set."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from glob import glob
from itertools import islice
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic
from pydantic import Field
from typing_extensions import Self

from fangyan.config import Config, PathName, short
from fangyan.data.annotated import Annotator, Block, examples_of
from fangyan.data.example import DATASET, PREFIX, Example, Splits, read_lines
from fangyan.data.held_out import count_groups, group_keys, hold_out, take, take_fold
from fangyan.data.replay import Replay
from fangyan.data.store import as_fields, cache_folder, keep_examples
from fangyan.errors import UserError

HeldOut = Annotated[float, Field(gt=0.0, lt=1.0)]
Files = Annotated[list[PathName], Field(min_length=1)] | PathName


class DataConfig(Config, ABC):
    """The recipe's ``data``: files and their format. Each format is a subclass with a ``format`` tag."""

    format: str
    # What the format's examples hold; a task needs some of them.
    fields: ClassVar[tuple[str, ...]]
    # The recipe's field that chooses among these, where the format has more than one kind of example.
    chooser: ClassVar[str] = "format"
    # For the model card: the corpus, its licence and its language as the Hub has them; None is the user's.
    corpus: ClassVar[str | None] = None
    licence: ClassVar[str | None] = None
    language: ClassVar[str | None] = None

    train: Files | None = Field(
        None, description="Files to train on; a name may be a pattern, such as data/*.conll."
    )
    dev: Files | HeldOut = Field(0.1, description="Files, or a fraction of train to hold out.")
    test: Files | HeldOut | None = Field(
        None, description="As dev. Scored before and after training, never used in it."
    )
    fold: Annotated[str, Field(pattern=r"^[1-9]\d{0,3}/[1-9]\d{0,3}$")] | None = Field(
        None,
        description="k/n: the k-th of n parts of train is the test split, for cross-validation; see fangyan "
        "train --folds.",
    )
    replay: Replay = Field(default_factory=Replay)
    unlabelled: Files | None = Field(
        None,
        description="Files that the model labels by itself and then learns from, of the data's format or "
        "texts, one per line; see self_training.",
    )
    cache_dir: PathName | None = Field(
        None,
        description="Folder for data larger than memory, read and tokenized: any disk with room, by default "
        "~/.cache/fangyan. It may be deleted between runs.",
    )

    @pydantic.field_validator("train", mode="before")
    @classmethod
    def _train_is_files(cls, value: Any) -> Any:
        if isinstance(value, float):
            raise ValueError(f"train is {value}, expected files; only dev and test may be fractions")
        return value

    @pydantic.model_validator(mode="after")
    def _needs_files(self) -> DataConfig:
        if self.train is None and self.corpus is None:
            raise ValueError(f"train is missing; format {self.format} needs the files to train on")
        return self

    @pydantic.model_validator(mode="after")
    def _fold_is_the_test_split(self) -> DataConfig:
        if self.fold is None:
            return self
        number, count = map(int, self.fold.split("/"))
        if not 1 <= number <= count or count < 2:
            raise ValueError(f"fold is {self.fold}, expected k/n with k from 1 to n, and n of 2 or more")
        if self.test is not None:
            raise ValueError(
                "test is given, and --folds (fold) takes a part of train for it; expected test: null"
            )
        return self

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Return the names of data sets, one of which stands before each text; none where none does."""
        return ()

    @property
    def parts(self) -> dict[str, Any]:
        """Return the files, or the fraction, of each split, for a description."""
        return {name: getattr(self, name) for name in ("train", "dev", "test")}

    def of_source(self, name: str | None) -> DataConfig:
        """Return how files of one of several data sets are read.

        Raises:
            UserError: if there are several and none is named, or one is named that is not there.
        """
        if name is not None:
            raise UserError(f"--source: found {short(name)}, but the run has one data set alone")
        return self

    def repeats(self, train: Iterable[Example]) -> dict[str, float] | None:  # noqa: ARG002
        """Return how often examples of each data set are seen in an epoch; None where all are seen once."""
        return None

    def choice(self, needed: Sequence[str]) -> str:
        """Return what :attr:`chooser` is expected to be for a task that needs some fields, for messages."""
        return f"one that has {' and '.join(needed)}"

    @classmethod
    def defaults(cls, needed: Collection[str]) -> dict[str, Any]:  # noqa: ARG003
        """Return the fields that a task needs the format to have, where a recipe is silent."""
        return {}

    @property
    def token_unit(self) -> Literal["words", "characters"]:
        """Return into what a text is cut before it is tagged."""
        return "words"

    @property
    def provided(self) -> tuple[str, ...]:
        """Return the fields of the examples that this recipe reads, of all that the format may have."""
        return self.fields

    @abstractmethod
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the examples of one file.

        Raises:
            UserError: naming file and line, for what is not of this format.
        """

    def metadata(self, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the source of each example of a file, and what the file says of it beside its fields."""
        expected = "expected conllu, conll, jsonl, csv, chat or hkcancor"
        raise UserError(f"{path}: format {self.format} has nothing to group examples by, {expected}")

    def read_files(self, paths: Sequence[str]) -> Sequence[Example]:
        """Return the examples of some files, in order; in a file of their own if they are many."""
        examples = (example for path in paths for file in find_files(path) for example in self.read(file))
        return keep_examples(examples, cache_folder(self.cache_dir))

    def load(self, seed: int) -> Splits:
        """Return the splits, every one with an example at least.

        Fractions are drawn by group, so that nothing held out is also trained on.

        Raises:
            UserError: for a missing file, a malformed line or an empty split.
        """
        splits = self.load_named()
        self.check_named(splits)
        if self.fold is not None:
            splits["train"], splits["test"] = take_fold(splits["train"], self.fold, seed)
        for salt, name in enumerate(("test", "dev")):
            fraction = getattr(self, name)
            if isinstance(fraction, float):
                before = splits["train"]
                splits["train"], splits[name] = hold_out(before, fraction, seed + salt)
                if not splits["train"]:
                    raise UserError(self._nothing_left(name, fraction, before))
        return {name: splits[name] for name in ("train", "dev", "test") if name in splits}

    def check_named(self, splits: Splits) -> None:
        """Refuse files without an example."""
        named = self.named()
        for name, examples in splits.items():
            if not examples:
                files = f" in {', '.join(named[name])}" if name in named else ""
                raise UserError(f"data.{name}: no example{files}, expected at least one")

    def _nothing_left(self, name: str, fraction: float, examples: Sequence[Example]) -> str:
        """Return why a fraction leaves nothing to train on."""
        groups = len(count_groups(group_keys(examples))[0])
        reason = (
            "identical sentences, or those of one document, are kept together and these are all one group"
            if groups == 1
            else f"they are {groups} groups that are kept together: identical sentences, or documents"
        )
        return (
            f"data.{name}: {fraction} of {len(examples)} examples leaves none to train on: {reason}; "
            f"expected more different ones, or files for {name}"
        )

    def load_named(self) -> Splits:
        """Return the splits that the recipe names files for; fractions come out of train afterwards."""
        return {name: self.read_files(files) for name, files in self.named().items()}

    def without_test(self) -> Self:
        """Return the data with the same train and dev splits, but no files of a test split to read."""
        return self.model_copy(update={"test": None}) if "test" in self.named() else self

    def named(self) -> dict[str, list[str]]:
        """Return the files of each split that is not a fraction."""
        values = {name: getattr(self, name) for name in ("train", "dev", "test")}
        return {
            name: [value] if isinstance(value, str) else value
            for name, value in values.items()
            if isinstance(value, str | list)
        }


class TaggedDataConfig(DataConfig, ABC):
    """A format whose examples are tokens with a tag each."""

    fields: ClassVar[tuple[str, ...]] = ("tokens", "tags")
    # Whether the line of an example's token follows from the example's: messages on tags then name it.
    line_per_token: ClassVar[bool] = False
    # Lines before the first example that a file needs, those between two, and whether # begins a comment.
    has_header: ClassVar[bool] = False
    between_examples: ClassVar[str] = ""
    has_comments: ClassVar[bool] = False

    tokens: Literal["words", "characters"] = Field(
        "words", description="What carries a tag; predict cuts a text into these."
    )

    @property
    def token_unit(self) -> Literal["words", "characters"]:
        """Return the recipe's choice."""
        return self.tokens

    def annotate(self, path: Path, annotations: Annotator) -> Iterator[str]:  # noqa: ARG002
        """Yield the lines of a file with predicted tags in place of its own, if any; all else byte for byte.

        Args:
            path: of the file, whose examples need no tags, labels or answers.
            annotations: returns one for each of the file's examples, which come without these.

        Raises:
            UserError: as :meth:`read` does, or if the format cannot be written.
        """
        raise self._not_written(path)

    def _not_written(self, path: Path) -> UserError:
        return UserError(
            f"{path}: format {self.format} cannot be written, expected conll, conllu, jsonl or csv"
        )

    def blocks(self, path: Path, labelled: bool) -> Iterator[Block]:  # noqa: ARG002
        """Yield the lines of a file in blocks, one for each example, of a format that can be written.

        Args:
            path: of the file.
            labelled: whether every example needs its tags, label or answers, which are then read.

        Raises:
            UserError: as :meth:`read` does, or if the format cannot be written.
        """
        raise self._not_written(path)

    def read_unlabelled(self, path: Path) -> Iterator[Example]:
        """Yield the examples of a file without tags, labels and answers, which need not be there."""
        return examples_of(self.blocks(path, False))

    def header(self, path: Path) -> str:  # noqa: ARG002
        """Return what a new file begins with."""
        return ""

    def blank(self, example: Example, path: Path) -> str:  # noqa: ARG002
        """Return the lines of an example in a new file, without tags, label or answers.

        Raises:
            UserError: if the format cannot be written.
        """
        raise self._not_written(path)


class TextDataConfig(DataConfig, ABC):
    """A format whose examples are raw texts."""

    fields: ClassVar[tuple[str, ...]] = ("text",)


def by_data_set(examples: Sequence[Example]) -> dict[str, Sequence[Example]]:
    """Return the examples of each data set, where there are several; nothing where there is one."""
    if not len(examples) or DATASET not in examples[0].fields:
        return {}
    indices: dict[str, array[int]] = {}
    for i, example in enumerate(examples):
        indices.setdefault(example.fields[DATASET], array("q")).append(i)
    return {name: take(examples, np.array(chosen)) for name, chosen in indices.items()}


def with_prefix(example: Example, name: str) -> Example:
    """Return an example with the name of its data set before what a model reads.

    Before tokens it is a field of its own, since it has no label.
    """
    fields = dict(example.fields)
    if "tokens" in fields:
        fields[PREFIX] = name
    else:
        text = "question" if "question" in fields else "text"
        fields[text] = f"{name}: {fields[text]}"
    return Example(fields, example.source, example.group)


def find_files(path: str) -> list[Path]:
    """Return a file, or in alphabetical order those that a pattern such as ``data/*.conll`` stands for.

    Raises:
        UserError: if it is a pattern of no file.
    """
    if not any(character in path for character in "*?[") or Path(path).exists():
        return [Path(path)]
    found = sorted(glob(path, recursive=True))
    if not found:
        raise UserError(f"{path}: no file has such a name")
    return [Path(file) for file in found]


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write examples as JSON lines, for :func:`read_examples`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for example in examples:
            # Without its folder: a run folder is moved to machines where that means nothing.
            source = PurePath(example.source).name
            record = {"fields": dict(example.fields), "source": source, "group": example.group}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_examples(path: Path, cache: Path | None = None, most: int | None = None) -> Sequence[Example]:
    """Read what :func:`write_examples` has written.

    Args:
        path: of the file.
        cache: folder for what is larger than memory, by default the user's.
        most: how many of the first examples to read; by default all.

    Raises:
        UserError: if the file is missing or damaged.
    """
    examples = (_parse_example(line, f"{path}:{number}") for number, line in read_lines(path))
    return keep_examples(islice(examples, most), cache or cache_folder())


def _parse_example(line: str, source: str) -> Example:
    try:
        record = json.loads(line)
        return Example(as_fields(record["fields"]), record["source"], record["group"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{source}: damaged, expected an example as fangyan writes it") from None
