"""The recipe: a tree of the components' Configs, read from YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import Field

from fangyan.adaptation import ADAPTATIONS
from fangyan.adaptation.adaptation import Adaptation
from fangyan.adaptation.full import Full
from fangyan.config import Config, OneOf, error_sentence, family_of
from fangyan.data.formats import FORMATS
from fangyan.data.splits import DataConfig
from fangyan.errors import UserError
from fangyan.models.loading import ModelConfig
from fangyan.objectives import OBJECTIVES
from fangyan.objectives.cross_entropy import CrossEntropy
from fangyan.objectives.objective import Objective
from fangyan.optimizers import OPTIMIZERS
from fangyan.optimizers.adamw import AdamW
from fangyan.optimizers.optimizer import OptimizerConfig
from fangyan.tasks import TASKS
from fangyan.tasks.task import TaskConfig
from fangyan.tasks.token_classification.task import TokenClassificationConfig
from fangyan.training.config import EngineConfig, ScheduleConfig, TrainConfig

# Recipes that come with the package, by name.
RECIPES = Path(__file__).with_name("recipes")


class Recipe(Config):
    """Everything that a run depends on."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(..., description="Names the run.")
    run_dir: str | None = Field(None, description="The run folder; by default runs/<name>.")
    seed: int = Field(0, description="Of the head's weights, the data order, dropout and fractional splits.")
    task: Annotated[TaskConfig, TASKS] = Field(default_factory=TokenClassificationConfig)
    data: Annotated[DataConfig, FORMATS]
    model: ModelConfig = Field(default_factory=ModelConfig)
    objective: Annotated[Objective, OBJECTIVES] = Field(default_factory=CrossEntropy)
    adaptation: Annotated[Adaptation, ADAPTATIONS] = Field(default_factory=Full)
    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = Field(default_factory=AdamW)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)

    @pydantic.model_validator(mode="after")
    def _sections_fit(self) -> Recipe:
        method = getattr(self.adaptation, "name")  # noqa: B009  (each subclass has it as a Literal)
        if self.train.packing and not self.adaptation.supports_packing:
            raise ValueError(
                f"train.packing is true, but {method} puts its own tokens before every sentence; "
                "expected train.packing=false"
            )
        stage, largest = self.engine.zero_stage, self.adaptation.largest_zero_stage
        if stage > largest:
            raise ValueError(f"engine.zero_stage is {stage}, but {method} takes {largest} at most")
        if self.engine.offload == "optimizer" and stage == 0:
            raise ValueError("engine.zero_stage is 0, which offloads nothing; expected 1, 2 or 3")
        needed = set(self.task.fields)
        if not needed <= set(self.data.fields):
            fitting = [n for n, member in FORMATS.members.items() if needed <= set(_fields(member))]
            raise ValueError(
                f"data.format is {self.data.format_name}, which has no {' and '.join(self.task.fields)}; "
                f"expected {', '.join(fitting)} for this task"
            )
        return self

    @property
    def folder(self) -> Path:
        """Return the run folder."""
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name

    def to_yaml(self) -> str:
        """Return the recipe with every default, as :func:`load_recipe` reads it."""
        tree = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            if family := family_of(field):  # the tag first: it says what the others mean
                tree[name] = {family.tag: tree[name][family.tag], **tree[name]}
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _fields(member: type[Config]) -> tuple[str, ...]:
    assert issubclass(member, DataConfig)
    return member.fields


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply ``key.sub=value`` overrides, whose values are YAML too.

    Args:
        path: of a file, or the name of a recipe that comes with the package, such as ``cantonese-pos``.
        overrides: applied in order.

    Raises:
        UserError: naming the file and the field, what was found and what was expected.
    """
    file = find_recipe(path)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
        if not isinstance(content, dict):
            raise UserError(f"{file}: expected a YAML mapping of recipe fields")
        for override in overrides or []:
            _override(content, override)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{file}{line}: not a YAML recipe: {reason}") from None
    return parse_recipe(content, str(file))


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
    known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
    raise UserError(f"{path}: no such recipe, expected a file or one of {known}")


def parse_recipe(content: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Check a plain tree of fields; see :func:`load_recipe` for the errors."""
    try:
        return Recipe.model_validate(content)
    except pydantic.ValidationError as error:
        raise UserError(f"{source}: {error_sentence(error, Recipe)}") from None


def _override(content: dict[str, Any], override: str) -> None:
    """Set one field of a recipe's tree."""
    match = re.match(r"^([\w.]+)=(.*)$", override, flags=re.DOTALL)
    if not match:
        raise UserError(f"override {override!r}: expected key.sub=value")
    *sections, key = match[1].split(".")
    for section in sections:
        inner = content.get(section)
        if not isinstance(inner, dict):
            inner = content[section] = {}
        content = inner
    content[key] = yaml.load(match[2], _Loader)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 that reads 1e-3 as a number, as YAML 1.2 does, and refuses a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are all different."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        double = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if double is not None:
            raise yaml.constructor.ConstructorError(
                problem=f"found duplicate key {double}", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def describe_fields() -> list[tuple[str, str, str]]:
    """Return every field as (dotted name, default, meaning), for help and documentation.

    A field of some members of a family alone is shown with their names: ``optimizer.momentum [sgd]``.
    """
    return _describe(Recipe, "")


def _describe(section: type[Config], prefix: str) -> list[tuple[str, str, str]]:
    rows = []
    for name, field in section.model_fields.items():
        family = family_of(field)
        if family is not None:
            rows += _describe_family(family, f"{prefix}{name}")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            rows += _describe(field.annotation, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, _default(field), field.description or ""))
    return rows


def _describe_family(family: OneOf, prefix: str) -> list[tuple[str, str, str]]:
    summaries = [
        f"{name}: {(member.__doc__ or '').strip().splitlines()[0]}" for name, member in family.members.items()
    ]
    rows = [(f"{prefix}.{family.tag}", family.default or "required", " ".join(summaries))]
    shown: dict[tuple[str, str, str], list[str]] = {}
    for member_name, member in family.members.items():
        for name, field in member.model_fields.items():
            if name != family.tag:
                row = (f"{prefix}.{name}", _default(field), field.description or "")
                shown.setdefault(row, []).append(member_name)
    for (name, default, meaning), members in shown.items():
        only = "" if len(members) == len(family.members) else f" [{', '.join(members)}]"
        rows.append((name + only, default, meaning))
    return rows


def _default(field: pydantic.fields.FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
