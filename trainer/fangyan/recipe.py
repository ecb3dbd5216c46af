"""The recipe: everything a YAML file may say, each field with its meaning, unit and default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field

from fangyan.errors import UserError

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Part = Annotated[list[str], Field(min_length=1)] | str | Annotated[float, Field(gt=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of the recipe; a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Task(Section):
    name: Literal["token_tagging", "language_modelling"] = Field(
        "token_tagging",
        description="What the model learns: a tag a token, or the next sub-word of raw text (causal models).",
    )
    scheme: Literal["auto", "words", "entities", "labels"] = Field(
        "auto",
        description="What the tags are, and so the scores: B-/I- on every token (words), IOB2 with O "
        "(entities), or plain labels. auto looks at the tags.",
    )
    labels: list[str] | None = Field(None, description="The tag set; by default every tag in the data.")
    label_smoothing: Fraction = Field(0.0, description="Share of the target spread over all tags.")


class Data(Section):
    format: Literal["hkcancor", "conll", "jsonl", "text", "common_voice"] = Field(
        ...,
        description="hkcancor: the corpus inside pycantonese. conll: a token and a tag a line. "
        "jsonl: an object a line with lists tokens and tags. text: raw text, a document a line. "
        "common_voice: the 9,444 Cantonese sentences inside pycantonese.",
    )
    tokens: Literal["words", "characters"] = Field(
        "words",
        description="What carries a tag, and into which predict cuts text. Words of hkcancor cut into "
        "characters get B-/I- tags.",
    )
    path: str | None = Field(None, description="Folder of hkcancor's .cha files, if not the installed one.")
    train: Part | None = Field(
        None, description="Files (hkcancor: conversations); hkcancor: all not held out."
    )
    dev: Part = Field(0.1, description="Files (hkcancor: conversations), or a fraction of train to hold out.")
    test: Part | None = Field(None, description="As dev. Scored before and after training, never used in it.")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Data:
        if self.format not in ("hkcancor", "common_voice") and self.train is None:
            raise ValueError(f"train is missing; format {self.format} needs the files to train on")
        if isinstance(self.train, float):
            raise ValueError(f"train is {self.train}, expected files; only dev and test may be fractions")
        if self.path is not None and self.format != "hkcancor":
            raise ValueError(f"path is only for format hkcancor, found format {self.format}")
        if self.format == "common_voice" and not (self.train is None and isinstance(self.dev, float)):
            raise ValueError("format common_voice is one list of sentences; expected no train, and fractions")
        return self


class Model(Section):
    path: str = Field(
        "cantonese-electra",
        description="A folder, a Hugging Face hub name, or cantonese-electra, the model inside pydips.",
    )
    pretrained: bool = Field(True, description="false starts the same architecture at random.")
    hidden_dropout: Fraction | None = Field(
        None, description="Dropout of hidden states; null keeps the model's."
    )
    attention_dropout: Fraction = Field(
        0.0, description="Dropout of attention weights; only 0 lets the fused attention kernels run."
    )
    max_length: Annotated[int, Field(ge=8)] | None = Field(
        None, description="Longest window, in sub-words; by default the model's. Longer input is windowed."
    )


class Adapt(Section):
    method: Literal["full", "lora", "dora", "adalora", "ia3", "prefix_tuning", "prompt_tuning"] = Field(
        "full",
        description="full trains every weight that freeze leaves. The others train an adapter beside frozen "
        "weights, and the head if the task brings one: lora by fangyan's kernels, the rest by PEFT.",
    )
    rank: Annotated[int, Field(ge=1, le=256)] = Field(16, description="Rank of lora, dora and adalora.")
    alpha: Annotated[float, Field(gt=0.0)] = Field(
        32.0, description="Their updates are scaled by alpha / rank."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead, which suits large ranks.")
    dropout: Fraction = Field(0.0, description="Share of an adapter's input that is dropped in training.")
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear", description="Linear layers that get an adapter; or the last parts of their names."
    )
    base: Literal["fp32", "bf16", "nf4"] | None = Field(
        None,
        description="How the frozen weights are kept: nf4 takes 4 bits each (bitsandbytes); by default "
        "engine.precision, which the other two have to equal.",
    )
    init: str | None = Field(
        None,
        description="A folder with an adapter as PEFT writes it, to go on from; its rank and targets hold.",
    )
    virtual_tokens: Annotated[int, Field(ge=1)] = Field(
        20, description="Length of what prefix_tuning and prompt_tuning put before every sentence."
    )

    @pydantic.model_validator(mode="after")
    def _check(self) -> Adapt:
        if self.method == "full" and self.base is not None:
            raise ValueError(f"base is {self.base}, but method full trains the weights; expected an adapter")
        if self.method == "full" and self.init is not None:
            raise ValueError(f"init is {self.init!r}, but method full has no adapter; expected one that has")
        if self.base == "nf4" and self.method not in ("lora", "dora"):
            raise ValueError(f"base nf4 goes with lora and dora, found method {self.method}")
        return self


class Freeze(Section):
    embeddings: bool = Field(False, description="Leave every embedding table as it is.")
    layers: int | str | None = Field(
        None, description="Encoder layers to leave as they are: 3, 0-3, or 0,2,4."
    )

    @pydantic.field_validator("layers")
    @classmethod
    def _check_layers(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str):
            parse_layers(value)
        return value


class Optimizer(Section):
    name: Literal["adamw", "adamw8bit", "paged_adamw8bit", "lion8bit", "ademamix8bit", "sgd"] = Field(
        "adamw",
        description="Bytes of state a parameter: adamw 8, adamw8bit 2, lion8bit 1, ademamix8bit 3, sgd 4. "
        "Those with 8 bits keep 32 for embeddings, norms and biases; on a GPU they are bitsandbytes', on the "
        "CPU and offloaded fangyan's, in one format. paged_adamw8bit moves states out of a full GPU.",
    )
    lr: Annotated[float, Field(gt=0.0)] = Field(1e-4, description="Peak learning rate.")
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Factor on the rate for each layer below the head; the embeddings' is the smallest."
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(
        0.01, description="Decoupled weight decay; off for norms and biases."
    )
    betas: tuple[Fraction, Fraction] | None = Field(
        None, description="Decay of the two averages; by default 0.9 and 0.999, of lion8bit 0.9 and 0.99."
    )
    beta3: Fraction = Field(
        0.9999, description="Decay of ademamix8bit's slow average; it rises to this over the run."
    )
    alpha: Annotated[float, Field(ge=0.0)] = Field(
        5.0, description="Weight of ademamix8bit's slow average; it rises to this over the run."
    )
    eps: Annotated[float, Field(gt=0.0)] = Field(1e-8, description="Adam's term against division by zero.")
    momentum: Fraction = Field(0.9, description="Momentum of sgd.")


class Schedule(Section):
    decay: Literal["linear", "cosine", "constant"] = Field("linear", description="Shape after the warm-up.")
    warmup: Fraction = Field(0.1, description="Share of all steps in which the rate rises from 0.")


class Train(Section):
    epochs: Annotated[int, Field(ge=1)] = Field(5, description="Passes over the training data.")
    batch_tokens: Annotated[int, Field(ge=1)] = Field(
        2048, description="Sub-words in an optimizer step, over all ranks and accumulation steps."
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = Field(
        1, description="Forward and backward passes a rank in an optimizer step."
    )
    gradient_clipping: Annotated[float, Field(ge=0.0)] = Field(
        1.0, description="Largest norm of the gradient; 0 does not clip."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute a layer's activations twice instead of keeping them: less memory, slower."
    )
    packing: bool = Field(True, description="Lay whole sequences side by side; false pads, one a row.")
    token_masking: Fraction = Field(
        0.0,
        description="Share of labelled sub-words replaced by the mask token in training, against rare ones.",
    )
    metric: str = Field(
        "auto", description="Dev score that picks the best checkpoint; auto takes the task's."
    )
    early_stopping: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Stop after so many epochs without a better dev score."
    )
    checkpoint_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps between checkpoints, besides the one at each epoch's end."
    )
    keep_checkpoints: Annotated[int, Field(ge=1)] = Field(
        1, description="Newest checkpoints kept, besides the best."
    )
    log_every: Annotated[int, Field(ge=1)] = Field(10, description="Steps between reads of the loss.")


class Engine(Section):
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="What DeepSpeed ZeRO shards: 1 optimizer states, 2 and gradients, 3 and weights.",
    )
    offload: Literal["none", "optimizer"] = Field(
        "none",
        description="optimizer: its states and the weights that it steps live, and are stepped, on the CPU; "
        "ZeRO 1 to 3.",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Of forward and backward.")
    kernels: Literal["auto", "reference"] = Field(
        "auto", description="auto: fangyan's own wherever they run. reference: plain PyTorch in their place."
    )


class Recipe(Section):
    """Everything a run depends on."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(..., description="Names the run.")
    run_dir: str | None = Field(None, description="The run folder; by default runs/<name>.")
    seed: int = Field(0, description="Of the head's weights, the data order, dropout and fractional splits.")
    task: Task = Field(default_factory=Task)
    data: Data
    model: Model = Field(default_factory=Model)
    adapt: Adapt = Field(default_factory=Adapt)
    freeze: Freeze = Field(default_factory=Freeze)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    train: Train = Field(default_factory=Train)
    engine: Engine = Field(default_factory=Engine)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Recipe:
        base = self.adapt.base
        if base in ("fp32", "bf16") and base != self.engine.precision:
            raise ValueError(f"adapt.base is {base}, expected engine.precision's {self.engine.precision}")
        if self.adapt.method in ("prefix_tuning", "prompt_tuning") and self.train.packing:
            raise ValueError(
                f"train.packing is true, but {self.adapt.method} puts its own tokens before every sentence; "
                "expected train.packing=false"
            )
        if self.engine.offload == "optimizer" and self.engine.zero_stage == 0:
            raise ValueError("engine.zero_stage is 0, which offloads nothing; expected 1, 2 or 3")
        if self.adapt.method == "adalora" and self.engine.zero_stage > 0:
            raise ValueError(
                f"engine.zero_stage is {self.engine.zero_stage}, but adalora reads gradients; expected 0"
            )
        raw = self.data.format in ("text", "common_voice")
        if raw != (self.task.name == "language_modelling"):
            raise ValueError(
                f"data.format is {self.data.format}, expected "
                f"{'text or common_voice' if not raw else 'hkcancor, conll or jsonl'} for {self.task.name}"
            )
        return self

    @property
    def folder(self) -> Path:
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Reads a YAML recipe and applies ``key.sub=value`` overrides, whose values are YAML too.

    Raises:
        UserError: naming the file and the field, what was found and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such recipe")
    try:
        tree: Any = OmegaConf.load(path)
        for override in overrides or []:
            if not re.match(r"^[\w.]+=", override):
                raise UserError(f"override {override!r}: expected key.sub=value")
            tree = OmegaConf.merge(tree, OmegaConf.from_dotlist([override]))
        content = OmegaConf.to_container(tree, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{line}: not a YAML recipe: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a YAML mapping of recipe fields")
    return parse_recipe(content, str(path))


def parse_recipe(content: dict[Any, Any], source: str = "recipe") -> Recipe:
    """Checks a plain tree of fields; see :func:`load_recipe` for the errors."""
    try:
        return Recipe.model_validate(_tuples(content))
    except pydantic.ValidationError as error:
        raise UserError(f"{source}: {_sentence(error)}") from None


def parse_layers(layers: int | str) -> list[int]:
    """``3``, ``0-3`` or ``0,2,4`` as a list of layer numbers."""
    numbers: list[int] = []
    for part in str(layers).split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+))?\s*", part)
        if not match:
            raise ValueError(f"layers is {layers!r}, expected numbers such as 3, 0-3 or 0,2,4")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"layers is {layers!r}, its range {part.strip()} runs backwards")
        numbers.extend(range(first, last + 1))
    return numbers


def describe_fields() -> list[tuple[str, str, str]]:
    """Every field as (dotted name, default, meaning), for ``fangyan train --help``."""
    rows = []

    def walk(section: type[Section], prefix: str) -> None:
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                walk(kind, f"{prefix}{name}.")
                continue
            default = "required" if field.is_required() else yaml.safe_dump(_plain(field.default))
            rows.append((prefix + name, default.removesuffix("\n...\n").strip(), field.description or ""))

    walk(Recipe, "")
    return rows


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tuples(content: dict[Any, Any]) -> dict[Any, Any]:
    """YAML has lists only; the strict check wants a tuple for the betas."""
    optimizer = content.get("optimizer")
    if isinstance(optimizer, dict) and isinstance(optimizer.get("betas"), list):
        content = {**content, "optimizer": {**optimizer, "betas": tuple(optimizer["betas"])}}
    return content


def _sentence(error: pydantic.ValidationError) -> str:
    """The first problem in one sentence; a union's branches count as one problem."""
    first = error.errors()[0]
    # A union adds the branch's name to the location: keep what names a field or an index.
    field = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or str(part).isidentifier())
    found = repr(first["input"])
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key; {_known_keys(first['loc'][:-1])}"
    if first["type"] == "missing":
        return f"{field}: missing; this field is required"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{field}: {message}" if field else message
    return f"{field}: {message[0].lower()}{message[1:]}, found {found[:80]}"


def _known_keys(location: tuple[int | str, ...]) -> str:
    section: type[Section] = Recipe
    for part in location:
        kind = section.model_fields[str(part)].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        section = kind
    return f"expected one of {', '.join(section.model_fields)}"
