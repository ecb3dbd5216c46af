"""The recipe: a tree of the components' Configs, read from YAML."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic
import yaml
from pydantic import Field

from fangyan.adaptation import ADAPTATIONS
from fangyan.adaptation.adaptation import Adaptation
from fangyan.config import Config, OneOf, PathName, error_sentence, family_of, short
from fangyan.data.formats import FORMATS
from fangyan.data.formats.for_task import check_alike, check_fields, filled
from fangyan.data.formats.records import PREDICTED
from fangyan.data.retained import parse_retained
from fangyan.data.splits import DataConfig
from fangyan.errors import UserError
from fangyan.models.loading import ModelConfig
from fangyan.objectives import OBJECTIVES
from fangyan.objectives.objective import Objective
from fangyan.optimizers import OPTIMIZERS
from fangyan.optimizers.optimizer import OptimizerConfig
from fangyan.suggestions import did_you_mean, file_like
from fangyan.tasks import TASKS
from fangyan.tasks.task import TaskConfig
from fangyan.training.config import EngineConfig, ScheduleConfig, SelfTrainingConfig, TrainConfig
from fangyan.training.tune.space import Space
from fangyan.yaml_text import dump_yaml, parse_yaml, read_yaml, yaml_error

# Recipes that come with the package, by name.
RECIPES = Path(__file__).with_name("recipes")


class Recipe(Config):
    """Everything that a run depends on."""

    name: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$", max_length=80)] = Field(
        ..., description="Names the run."
    )
    run_dir: PathName | None = Field(None, description="The run folder; by default runs/<name>.")
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = Field(
        0, description="Of the head's weights, the data order, dropout and fractional splits."
    )
    task: Annotated[TaskConfig, TASKS] = Field(default_factory=TASKS.default_member)
    data: Annotated[DataConfig, FORMATS]
    model: ModelConfig = Field(default_factory=ModelConfig)
    objective: Annotated[Objective, OBJECTIVES] = Field(default_factory=OBJECTIVES.default_member)
    adaptation: Annotated[Adaptation, ADAPTATIONS] = Field(default_factory=ADAPTATIONS.default_member)
    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = Field(default_factory=OPTIMIZERS.default_member)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    self_training: SelfTrainingConfig = Field(default_factory=SelfTrainingConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    retain: list[dict[str, Any]] = Field(
        [],
        description="Data sets that are scored before and after training, to see what is forgotten: a "
        "section like data for each, with a name. Scored is its test, or all of its train without one.",
    )
    tune: dict[str, Space] | None = Field(
        None,
        description="What fangyan tune tries, by field: {optimizer.lr: {log: [1.0e-5, 1.0e-3]}}; or uniform, "
        "int, log_int, choice. A run is not changed by it.",
    )

    @pydantic.field_validator("run_dir")
    @classmethod
    def _is_a_new_folder(cls, value: str | None) -> str | None:
        if value is not None and set(Path(os.path.normpath(value)).parts) <= {"/", ".", ".."}:
            raise ValueError(f"found {short(value)}, expected a folder of the run's own, such as runs/x")
        return value

    @pydantic.model_validator(mode="before")
    @classmethod
    def _data_for_the_task(cls, content: Any) -> Any:
        """Fill in what the format's fields are for the task, where the recipe does not say."""
        sections = dict(content) if isinstance(content, Mapping) else {}
        data, task = sections.get("data"), sections.get("task", {})
        if not isinstance(data, Mapping) or not isinstance(task, Mapping):
            return content
        chosen = TASKS.members.get(str(task.get("name", TASKS.default)))
        if chosen is None or not issubclass(chosen, TaskConfig):
            return content
        sections["data"] = filled(data, chosen.fields)
        objective, retain = sections.get("objective"), sections.get("retain")
        if isinstance(objective, Mapping) and "data" in objective:
            sections["objective"] = {**objective, "data": filled(objective["data"], chosen.fields)}
        if isinstance(retain, list):
            sections["retain"] = [filled(each, chosen.fields) for each in retain]
        return sections

    @pydantic.model_validator(mode="after")
    def _sections_fit(self) -> Recipe:
        method = self.adaptation.name
        if self.train.packing and not self.adaptation.supports_packing:
            raise ValueError(
                f"train.packing is true, but {method} puts its own tokens before every sentence; "
                "expected train.packing=false"
            )
        stage, largest = self.engine.zero_stage, self.adaptation.largest_zero_stage
        if stage > largest:
            raise ValueError(f"engine.zero_stage is {stage}, but {method} takes {largest} at most")
        if self.engine.precision == "fp16" and self.adaptation.reads_gradients:
            raise ValueError(
                f"engine.precision is fp16, which scales the gradients that {method} reads; expected bf16"
            )
        if self.engine.offload == "optimizer" and stage == 0:
            raise ValueError("engine.zero_stage is 0, which offloads nothing; expected 1, 2 or 3")
        if self.model.extend_vocabulary:
            self._check_new_tokens()
        if self.model.is_scratch and not self.adaptation.trains_base_weights:
            raise ValueError(
                f"model.path is scratch, which has nothing that {method} could leave as it is; expected full"
            )
        if self.data.prefixes and not set(self.task.fields) & set(PREDICTED):
            raise ValueError(
                f"data.prefix is for tasks with tags, labels or answers, found {self.task.name}; expected "
                "false, and the name in the texts themselves"
            )
        for place, data in self._all_data().items():
            check_fields(data, place, self.task.name, self.task.fields)
            check_alike(data, place, self.data, self.task.fields)
        if self.data.replay.is_own and not self.model.pretrained:
            raise ValueError(
                "data.replay.source is self, but model.pretrained is false, which has nothing to write yet; "
                "expected data"
            )
        if self.data.replay.is_own and not self.task.can_write_texts:
            raise ValueError(
                "data.replay.source is self, which is for models that write raw text, found "
                f"{self.task.name}; expected data"
            )
        return self

    def _all_data(self) -> dict[str, DataConfig]:
        """Return the run's data, and what else it reads, by the field of the recipe."""
        replayed = self.data.replay.data()
        try:
            retained = parse_retained(self.retain)
        except UserError as error:
            raise ValueError(str(error)) from None
        return {
            "data": self.data,
            **({} if replayed is None else {"data.replay.source": replayed}),
            **self.objective.other_data(),
            **{f"retain: {name}": data for name, data in retained.items()},
        }

    def _check_new_tokens(self) -> None:
        adaptation = self.adaptation
        field = f"model.extend_vocabulary is {self.model.extend_vocabulary}"
        if not adaptation.supports_new_tokens:
            raise ValueError(f"{field}, but {adaptation.name} trains no embeddings; expected full or lora")
        for name in ("freeze_embeddings", "adapter_path"):
            if getattr(adaptation, name, None):
                raise ValueError(
                    f"{field}, but adaptation.{name} keeps those there are; expected one of both"
                )
        if not adaptation.trains_base_weights and self.engine.zero_stage == 3:
            raise ValueError(f"{field}, whose embeddings {adaptation.name} keeps whole; expected ZeRO 0 to 2")

    @property
    def folder(self) -> Path:
        """Return the run folder."""
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name

    def to_yaml(self) -> str:
        """Return the recipe with every default, as :func:`load_recipe` reads it."""
        return dump_yaml(self.model_dump(mode="json"))


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply ``key.sub=value`` overrides, whose values are YAML too.

    Args:
        path: of a file, or the name of a recipe that comes with the package, such as ``cantonese-pos``.
        overrides: applied in order.

    Raises:
        UserError: naming the file and the field, what was found and what was expected.
    """
    content, source = read_recipe(path, overrides)
    if "stages" in content:
        raise UserError(f"{source}: stages are for fangyan train, expected a recipe without")
    return parse_recipe(content, source)


def read_recipe(path: str | Path, overrides: list[str] | None = None) -> tuple[dict[str, Any], str]:
    """Return the tree of a recipe's fields, which are not checked yet, and its file's name for messages."""
    file = find_recipe(path)
    content = read_yaml(file)
    for override in overrides or []:
        _override(content, override)
    return content, str(file)


def find_recipe(path: str | Path) -> Path:
    """Return a recipe's file; see :func:`load_recipe`.

    Raises:
        UserError: if there is no such file and the package has no recipe of this name.
    """
    file, packaged = Path(path), RECIPES / f"{path}.yaml"
    if file.is_file():
        return file
    if packaged.is_file() and packaged.parent == RECIPES:
        return packaged
    known = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
    hint = did_you_mean(str(path), known) or file_like(path)
    raise UserError(f"{str(path)[:200]}: no such recipe, expected a file or one of {', '.join(known)}{hint}")


def parse_recipe(content: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Check a plain tree of fields; see :func:`load_recipe` for the errors."""
    try:
        return Recipe.model_validate(content)
    except pydantic.ValidationError as error:
        raise UserError(f"{source}: {error_sentence(error, Recipe)}") from None


def _override(content: dict[str, Any], override: str) -> None:
    """Set one field of a recipe's tree."""
    match = re.match(r"^(\w+(?:\.\w+)*)=(.*)\Z", override, flags=re.DOTALL)
    if not match:
        raise UserError(f"override {short(override)}: expected key.sub=value")
    try:
        value = parse_yaml(match[2])
    except yaml.YAMLError as error:
        raise UserError(f"override {short(override)}{yaml_error(error)}") from None
    set_field(content, match[1], value, f"override {short(override)}")


def set_field(content: dict[str, Any], field: str, value: Any, source: str) -> None:
    """Set one field of a recipe's tree.

    Args:
        content: the tree.
        field: dotted.
        value: for it.
        source: of the value, for the message.

    Raises:
        UserError: if it is within what is no section.
    """
    *sections, key = field.split(".")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"{source}: {section} is {short(inner)}, expected a section")
        content = inner
    content[key] = value


class FieldDescription(NamedTuple):
    """A field of a recipe, for help and documentation.

    Attributes:
        name: dotted.
        default: as YAML, or ``required``.
        meaning: one sentence.
        members: of a family, that have the field; none where all have it.
    """

    name: str
    default: str
    meaning: str
    members: tuple[str, ...] = ()


def describe_fields() -> list[FieldDescription]:
    """Return every field of a recipe."""
    return _describe(Recipe, "")


def _describe(section: type[Config], prefix: str) -> list[FieldDescription]:
    rows = []
    for name, field in section.model_fields.items():
        family = family_of(field)
        if family is not None:
            rows += _describe_family(family, f"{prefix}{name}")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            rows += _describe(field.annotation, f"{prefix}{name}.")
        else:
            rows.append(FieldDescription(prefix + name, _default(field), field.description or ""))
    return rows


def _describe_family(family: OneOf, prefix: str) -> list[FieldDescription]:
    summaries = [f"{name}: {member.summary()}" for name, member in family.members.items()]
    rows = [FieldDescription(f"{prefix}.{family.tag}", family.default or "required", " ".join(summaries))]
    owners: dict[FieldDescription, list[str]] = {}
    for member_name, member in family.members.items():
        for row in _describe(member, f"{prefix}."):
            if row.name != f"{prefix}.{family.tag}":
                owners.setdefault(row, []).append(member_name)
    for row, names in owners.items():
        rows.append(row if len(names) == len(family.members) else row._replace(members=tuple(names)))
    return rows


def _default(field: pydantic.fields.FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
