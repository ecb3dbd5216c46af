"""Several data sets that one model learns together, such as the dialects of a language."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field
from typing_extensions import override

from fangyan.config import short
from fangyan.data.example import DATASET, Example, Splits
from fangyan.data.splits import DataConfig, with_prefix
from fangyan.data.store import cache_folder, keep_examples
from fangyan.errors import UserError
from fangyan.suggestions import did_you_mean


class Sources(DataConfig):
    """Several data sets, each with a format, files and splits of its own; scores of each, and of all."""

    format: Literal["sources"] = "sources"
    corpus: ClassVar[str | None] = "several data sets"
    # What there is, is up to the members: see provided.
    fields: ClassVar[tuple[str, ...]] = ()

    sources: Annotated[list[dict[str, Any]], Field(min_length=1)] = Field(
        ...,
        description="A section like data for each, with a name: [{name: gsw, format: conllu, ...}, ...].",
    )
    temperature: Annotated[float, Field(ge=1.0, le=100.0)] = Field(
        1.0,
        description="t: in training, examples of a data set are seen in proportion to its size^(1/t). 1: as "
        "they are; more lets small ones be seen more often.",
    )
    zero_shot: list[str] = Field(
        [], description="Names of data sets that are not trained on: all they have in train is in test."
    )

    prefix: bool = Field(
        False,
        description="Whether the name of its data set stands before each text: predict then takes --source. "
        "Not before texts of zero_shot.",
    )

    @pydantic.model_validator(mode="after")
    def _members_fit(self) -> Sources:
        for field in ("train", "dev", "test"):
            if getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} is given beside sources, expected it in each of them")
        try:
            members = self.members()
        except UserError as error:
            raise ValueError(str(error)) from None
        if unknown := sorted(set(self.zero_shot) - members.keys()):
            raise ValueError(f"zero_shot has {short(unknown[0])}, expected some of {', '.join(members)}")
        if set(self.zero_shot) >= members.keys():
            raise ValueError("zero_shot has all data sets, expected one to train on")
        if len({member.token_unit for member in members.values()}) > 1:
            raise ValueError("sources differ in tokens, expected words, or characters, in all of them")
        if len({"pair" in member.provided for member in members.values()}) > 1:
            raise ValueError("sources differ in pair, expected one text in all of them, or two")
        for name, content in named_sources(self.sources):
            given = [field for field in ("dev", "test", "fold") if content.get(field) is not None]
            if name in self.zero_shot and given:
                raise ValueError(
                    f"sources: {name} has {given[0]}, expected train alone of a zero_shot data set, which is "
                    "all tested on"
                )
        return self

    def members(self) -> dict[str, DataConfig]:
        """Return the data sets by name.

        Raises:
            UserError: naming the field, what was found and what was expected.
        """
        from fangyan.data.formats import parse_other_data

        found: dict[str, DataConfig] = {}
        for name, content in named_sources(self.sources):
            if not isinstance(name, str) or not name or "/" in name:
                raise UserError(f"sources: name is {short(name)}, expected text without a slash")
            if name in found:
                raise UserError(f"sources: {name} is there twice, expected names that differ")
            own = {key: value for key, value in content.items() if key != "name"}
            if self.cache_dir is not None:
                own.setdefault("cache_dir", self.cache_dir)
            if self.fold is not None and name not in self.zero_shot:
                own["fold"] = self.fold
            if own.get("format") == self.format:
                raise UserError(f"sources: {name} is of sources itself, expected a format of files")
            found[name] = parse_other_data(own, f"sources: {name}")
        return found

    @property
    @override
    def token_unit(self) -> Literal["words", "characters"]:
        """Return what all data sets have."""
        return next(iter(self.members().values())).token_unit

    @property
    @override
    def provided(self) -> tuple[str, ...]:
        """Return the fields that all data sets have."""
        first, *others = (member.provided for member in self.members().values())
        return tuple(name for name in first if all(name in other for other in others))

    @property
    @override
    def prefixes(self) -> tuple[str, ...]:
        """Return the names of the data sets that are trained on, where texts begin with them."""
        return tuple(name for name in self.members() if name not in self.zero_shot) if self.prefix else ()

    @property
    @override
    def parts(self) -> dict[str, Any]:
        """Return the files, or the fraction, of each split of each data set."""
        return {
            f"{name}, {'test' if name in self.zero_shot else split}": value
            for name, member in self.members().items()
            for split, value in member.parts.items()
            if split == "train" or name not in self.zero_shot
        }

    @override
    def without_test(self) -> Sources:
        """Return the data sets that are trained on, without files of a test split to read."""
        sources = []
        for (name, content), member in zip(named_sources(self.sources), self.members().values(), strict=True):
            if name not in self.zero_shot:
                alone = member.without_test()
                sources.append({**content, "name": name, "train": alone.train, "test": alone.test})
        return self.model_copy(update={"sources": sources, "zero_shot": []})

    @override
    def of_source(self, name: str | None) -> DataConfig:
        """Return this with one data set alone; see :class:`DataConfig`."""
        members = self.members()
        if name not in members:
            found = "--source is missing" if name is None else f"--source: found {short(name)}"
            hint = "" if name is None else did_you_mean(name, members)
            raise UserError(f"{found}, expected one of {', '.join(members)}{hint}")
        own = self.sources[list(members).index(name)] | {"name": name}
        return self.model_copy(update={"sources": [own]})

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the examples of a file, which is read as those of the first data set."""
        name, member = next(iter(self.members().items()))
        return self._named(name, member.read(path))

    @override
    def metadata(self, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield what a file of the first data set says of its examples; see :class:`DataConfig`."""
        return next(iter(self.members().values())).metadata(path)

    @override
    def load(self, seed: int) -> Splits:
        """Return the splits of all data sets together; each example says of which it is."""
        parts: dict[str, list[Iterable[Example]]] = {"train": [], "dev": [], "test": []}
        for name, member in self.members().items():
            for split, examples in self._splits(name, member, seed).items():
                parts[split].append(self._named(name, examples))
        cache = cache_folder(self.cache_dir)
        return {split: keep_examples(chain(*found), cache) for split, found in parts.items() if found}

    def _splits(self, name: str, member: DataConfig, seed: int) -> Splits:
        try:
            if name in self.zero_shot:
                named = member.load_named()
                member.check_named(named)
                return {"test": named["train"]}
            return member.load(seed)
        except UserError as error:
            raise UserError(f"data.sources: {name}: {error}") from None

    def _named(self, name: str, examples: Iterable[Example]) -> Iterator[Example]:
        """Yield examples that say of which data set they are."""
        is_told = name in self.prefixes
        for example in examples:
            fields: Mapping[str, Any] = {**example.fields, DATASET: name}
            named = Example(fields, example.source, example.group)
            yield with_prefix(named, name) if is_told else named

    @override
    def repeats(self, train: Iterable[Example]) -> dict[str, float] | None:
        """Return how often examples of each data set are seen in an epoch; see :attr:`temperature`."""
        if self.temperature == 1.0:
            return None
        sizes: dict[str, int] = {}
        for example in train:
            name = example.fields[DATASET]
            sizes[name] = sizes.get(name, 0) + 1
        weights = {name: size ** (1.0 / self.temperature) for name, size in sizes.items()}
        per_weight = sum(sizes.values()) / sum(weights.values())
        return {name: per_weight * weights[name] / size for name, size in sizes.items()}


def named_sources(sources: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yield the sections of data sets as a recipe has them, with their names, by default their numbers."""
    for number, content in enumerate(sources, start=1):
        yield content.get("name", f"source-{number}"), content
