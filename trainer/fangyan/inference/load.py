"""Loading what a run exported: to predict, to evaluate, to merge, to copy."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from fangyan.adaptation.fused_lora import use_fused_lora
from fangyan.adaptation.peft_model import without_peft_warnings
from fangyan.adaptation.quantization import dequantize, quantize
from fangyan.config import short
from fangyan.data.tokenization import Tokenizer
from fangyan.device import device
from fangyan.errors import UserError
from fangyan.files import REPEAT, whole_folder
from fangyan.inference.graph import GraphModel, has_graph, refuse_graph
from fangyan.inference.run_data import examples_of, source_names
from fangyan.inference.temperature import TEMPERATURE, is_temperature
from fangyan.models.files import read_config, read_tokenizer, read_weights, reading, weights_name
from fangyan.models.layout import keep_layout
from fangyan.models.loading import cast_weights, load_as_stored, silence_transformers
from fangyan.models.packed import Layout, PackedModel
from fangyan.models.structure import fingerprint
from fangyan.models.vocabulary import resize_embeddings, use_merged_tokens
from fangyan.suggestions import did_you_mean, run_like
from fangyan.tasks import evaluation, task_of_export
from fangyan.tasks.predictor import Predictor
from fangyan.tasks.report import Report
from fangyan.tasks.task import Metrics, Task

# Answers that a model writes for an evaluation: some minutes' worth on a CPU.
ANSWERS = 100
# Sub-words, as of a recipe's model.max_length.
_LEAST_LENGTH = 8


@dataclass(frozen=True)
class ExportedModel:
    """A model as a run exported it.

    Attributes:
        model: of transformers, or PEFT's around one, or its graph.
        backend: its tokenizer.
        task: what it learned.
        layout: of batches.
        max_length: most sub-words of a sequence.
        prefixes: names of data sets, one of which stands before each text.
    """

    model: Any
    backend: Any
    task: Task
    layout: Layout
    max_length: int
    prefixes: Sequence[str] = ()

    def packed(self) -> PackedModel:
        """Return the model ready to run on this machine's device.

        Raises:
            UserError: if what it computes of a batch is not what it computes of each sequence.
        """
        if isinstance(self.model, GraphModel):
            return cast(PackedModel, self.model)  # it has what tasks use of one
        model = self.task.pack(self.model, "padded").to(device()).eval()
        for message in keep_layout(model, self.layout):
            warnings.warn(message, stacklevel=2)
        return model


def load(run: str | Path, source: str | None = None) -> Predictor:
    """Load the model of a run folder, or an exported model folder, to predict.

    Args:
        run: the folder.
        source: name of the data set that texts are of, where the model has learned to be told; ``-`` for
            another.

    Raises:
        UserError: if there is no exported model, or it cannot be loaded, or ``source`` does not fit it.
    """
    folder = model_folder(Path(run))
    exported = load_exported(folder)
    if exported.task.is_causal:
        refuse_graph(folder, "writing text")  # it keeps nothing of the sub-words before
    check_source(source, exported.prefixes, source_names(Path(run)))
    predictor = exported.task.predictor(exported.packed(), Tokenizer(exported.backend), exported.max_length)
    predictor.prefix = source if source in exported.prefixes else None
    return predictor


def check_source(source: str | None, prefixes: Sequence[str], names: Sequence[str]) -> None:
    """Check what the user says that texts are of.

    Args:
        source: a name, ``-`` for another data set, or None.
        prefixes: names that the model is told.
        names: of all data sets, where they are known.
    """
    known = list(dict.fromkeys([*prefixes, *names]))
    if source is None and prefixes:
        raise UserError(f"--source is missing, expected what the texts are of: {', '.join(known)}, or -")
    if source is None or (prefixes and source == "-") or source in known:
        return
    if not known:
        raise UserError(f"--source: found {short(source)}, but the model knows no data sets by name")
    other = (", or - for another" if prefixes else "") + did_you_mean(source, known)
    raise UserError(f"--source: found {short(source)}, expected one of {', '.join(known)}{other}")


def evaluate(
    run: str | Path,
    data: Sequence[str] | None = None,
    say: Callable[[str], None] = warnings.warn,
    on_report: Callable[[Report], None] | None = None,
    answers: int = ANSWERS,
    source: str | None = None,
) -> Metrics:
    """Return the metrics of a run's model.

    Args:
        run: a run folder.
        data: files of the run's format; by default the run's own test split, else its dev split.
        say: called with a message on each thing in the data that the model has not learned, such as a tag.
        on_report: called with the scores of each class, if the task has such.
        answers: how many of the examples an assistant answers itself, to be scored.
        source: of which of several data sets the files are.

    Raises:
        UserError: if it is no run folder, or a file is not of its format.
    """
    folder = Path(run)
    exported = load_run(folder)
    examples = examples_of(folder, data, source)
    for note in exported.task.notes(examples):
        say(note)
    tokenizer = Tokenizer(exported.backend)
    model, longest = exported.packed(), exported.max_length
    task = exported.task
    metrics = evaluation.evaluate(task, model, examples, tokenizer, longest, on_report=on_report)
    return metrics | task.generated_metrics(examples[:answers], model, tokenizer, longest)


def export(run: str | Path, output: str | Path) -> None:
    """Copy a run's model to a new folder: what plain transformers or PEFT load.

    Raises:
        UserError: if there is no exported model, or ``output`` exists or cannot be written.
    """
    source, target = model_folder(Path(run)), new_folder(output)
    for path in source.rglob("*"):
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"{path}: neither a file nor a folder, or a link to nowhere")
    config: dict[str, Any] = {}
    try:
        if (source / "adapter_config.json").is_file():
            config, name = _adapter_config(source)
            base = _base_folder(source, name)
            # A base in a folder of its own is found from the new place too.
            if base is not None and not base.is_relative_to(source.resolve()):
                config["base_model_name_or_path"] = os.path.relpath(base, target.resolve())
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    with whole_folder(target, REPEAT) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        if config:
            text = json.dumps(config, indent=2)
            (partial / "adapter_config.json").write_text(text, encoding="utf-8")


def merge(run: str | Path, output: str | Path) -> None:
    """Write a run's model as plain transformers files, its adapter, if it has one, merged into its weights.

    Raises:
        UserError: if the adapter is no change of the weights, or ``output`` exists or cannot be written.
    """
    target, source = new_folder(output), model_folder(Path(run))
    exported = load_merged(source)
    with whole_folder(target, REPEAT) as partial:
        exported.model.save_pretrained(partial)
        exported.backend.save_pretrained(partial)


def load_merged(folder: Path) -> ExportedModel:
    """Load an exported model as plain transformers', its adapter, if it has one, merged into its weights.

    Args:
        folder: see :func:`load_exported`.

    Raises:
        UserError: if the adapter is no change of the weights, or as :func:`load_exported` does.
    """
    refuse_graph(folder, "this export")
    exported = load_exported(folder, mergeable=True)
    if not hasattr(model := exported.model, "merge_and_unload"):
        return exported
    if model.active_peft_config.is_prompt_learning:
        raise UserError(f"{folder}: prompts cannot be merged into the weights, expected another adapter")
    return replace(exported, model=model.merge_and_unload())


def new_folder(output: str | Path) -> Path:
    """Return the path of a folder that is to be made; refuse one that exists."""
    target = Path(output)
    if target.exists():
        raise UserError(f"{target}: it exists, expected a new folder")
    return target


def model_folder(run: Path) -> Path:
    """Return the exported model of a run folder, or the folder itself."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run{run_like(run)}")
    folder = run / "model" if (run / "recipe.yaml").is_file() else run
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no exported model in it, expected a finished run or its model folder")
    return folder


def load_run(run: str | Path) -> ExportedModel:
    """Load the model of a run folder, or an exported model folder, with its tokenizer and its task.

    Raises:
        UserError: if there is no exported model, or it cannot be loaded.
    """
    return load_exported(model_folder(Path(run)))


def load_exported(folder: Path, mergeable: bool = False) -> ExportedModel:
    """Load an exported model (PEFT's, where it is an adapter), its tokenizer and its task.

    Args:
        folder: ``model`` of a run folder, or a copy of it.
        mergeable: leave layers to PEFT, and load a 4-bit base as plain matrices of the same values.

    Raises:
        UserError: naming what is missing or cannot be read.
    """
    silence_transformers()
    try:
        config = read_config(folder)
        inference = getattr(config, "fangyan", None)
        if inference is None:
            raise UserError(
                f"{folder}/config.json: no field 'fangyan', expected a model that fangyan exported"
            )
        if not isinstance(inference, dict):
            raise UserError(f"{folder}/config.json: fangyan is {str(inference)[:60]!r}, expected fields")
        with reading("config.json"):
            task = task_of_export(inference, config, f"{folder}/config.json: fangyan")
        _check_fields(folder, inference)
        task.temperature = float(inference.get(TEMPERATURE, 1.0))
        backend = read_tokenizer(folder)
        if has_graph(folder):
            model: Any = GraphModel(folder)
        elif (folder / "adapter_config.json").is_file():
            model = _load_adapter(folder, task, config, mergeable)
        else:
            model = _load_whole(folder, task)
        names = inference.get("prefixes", ())
        return ExportedModel(model, backend, task, inference["layout"], inference["max_length"], names)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:400]}") from None


def _check_fields(folder: Path, inference: Mapping[str, Any]) -> None:
    """Refuse an export that does not say what loading needs."""
    needed: dict[str, Callable[[Any], bool]] = {
        "layout": lambda value: value in get_args(Layout),
        "max_length": lambda value: type(value) is int and value >= _LEAST_LENGTH,
    }
    if TEMPERATURE in inference:
        needed[TEMPERATURE] = is_temperature
    if "prefixes" in inference:
        needed["prefixes"] = _are_names
    if (folder / "adapter_config.json").is_file():
        needed["base"] = _is_base
    whole = f"expected a whole export, with {', '.join(needed)}"
    for field, fits in needed.items():
        if field not in inference:
            raise UserError(f"{folder}/config.json: fangyan has no field {field!r}, {whole}")
        if not fits(inference[field]):
            raise UserError(
                f"{folder}/config.json: fangyan.{field} is {str(inference[field])[:60]!r}, {whole}"
            )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _is_base(value: Any) -> bool:
    """Return whether an adapter's export says what its base is, as :func:`fangyan.inference.export` does."""
    if not isinstance(value, dict):
        return False
    new, size = value.get("new"), value.get("vocab_size", 1)
    return (
        isinstance(new, list)
        and all(isinstance(name, str) for name in new)
        and (type(size) is int and size > 0)
        and value.get("quantization") in (None, "nf4")
        and isinstance(value.get("fingerprint"), str)
    )


def _load_whole(folder: Path, task: Task) -> Any:
    model, unfit = read_weights(task.auto_model, folder, dtype=torch.float32)
    if unfit:
        raise ValueError(
            f"{weights_name(folder)}: its weight {unfit[0]} is missing or does not fit config.json"
        )
    return model


def _adapter_config(folder: Path) -> tuple[dict[str, Any], str]:
    """Return what an adapter's ``adapter_config.json`` says, and its base's name.

    Raises:
        ValueError: if it is damaged.
    """
    with reading("adapter_config.json"):
        content = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        name = content["base_model_name_or_path"]
        if not isinstance(name, str):
            raise TypeError(f"base_model_name_or_path is {str(name)[:60]!r}")
        return content, name


def _load_adapter(folder: Path, task: Task, config: Any, mergeable: bool) -> Any:
    from peft import PeftModel

    _, name = _adapter_config(folder)
    path = _base_folder(folder, name) or name
    with reading("config.json: fangyan.base"):
        expected = config.fangyan["base"]
        new, mark, quantization = (expected[key] for key in ("new", "fingerprint", "quantization"))
    vocabulary = config.get_text_config()
    extended = vocabulary.vocab_size
    vocabulary.vocab_size = expected.get("vocab_size", extended)
    base = load_as_stored(task.auto_model, path, config)
    if fingerprint(base, new) != mark:
        raise UserError(
            f"{folder}: its base model {path} has other weights than the adapter was trained on; "
            "expected those (a run that was repeated in the same folder replaces them)"
        )
    if quantization == "nf4":
        quantize(base, new, torch.float32)
        if mergeable:
            dequantize(base)
    cast_weights(base, torch.float32)
    resize_embeddings(base, extended)  # the adapter's file has the new rows
    with without_peft_warnings(), reading("adapter_model.safetensors, adapter_model.bin"):
        model = PeftModel.from_pretrained(base, folder)
    use_merged_tokens(model)
    if not mergeable:
        use_fused_lora(model)
    return model


def _base_folder(folder: Path, name: str) -> Path | None:
    """Return the folder of an adapter's base, which is relative to the adapter; None for the hub's."""
    path = folder / name
    return path.resolve() if path.is_dir() else None
