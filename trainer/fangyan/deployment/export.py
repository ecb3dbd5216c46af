"""Exports for machines without PyTorch: ``fangyan export RUN FOLDER --format onnx | int8``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fangyan.data.example import Example
from fangyan.data.splits import read_examples
from fangyan.deployment import FORMATS
from fangyan.deployment.comparison import TOGETHER, Agreement, Comparison, Model
from fangyan.deployment.readme import readme
from fangyan.deployment.tracing import check_packages, quiet, save, trace
from fangyan.errors import UserError
from fangyan.files import REPEAT, whole_folder
from fangyan.inference.graph import GRAPH, GraphModel
from fangyan.inference.load import ExportedModel, load_exported, load_merged, model_folder, new_folder
from fangyan.models.pooled import PooledModel
from fangyan.suggestions import did_you_mean
from fangyan.tasks.task import Metrics

_GGUF = (
    "--format gguf: no package converts models to it; run: fangyan export RUN FOLDER --merge, and then "
    "llama.cpp's own: python convert_hf_to_gguf.py FOLDER"
)


@dataclass(frozen=True)
class Form:
    """A form of a model, measured.

    Attributes:
        name: for people.
        metrics: on the split.
        megabytes: of its weights, and the graph that they are in.
        alone: ms of a sequence, one at a time.
        together: ms of a sequence, :data:`fangyan.deployment.comparison.TOGETHER` at a time.
    """

    name: str
    metrics: Metrics
    megabytes: float
    alone: float
    together: float


@dataclass(frozen=True)
class Deployed:
    """What came of an export.

    Attributes:
        split: that it was measured on.
        agreement: of the graph in float32 with the run.
        forms: the run's model, its graph and, if asked for, that in 8 bits.
        metric: that says which is better.
    """

    split: str
    agreement: Agreement
    forms: list[Form]
    metric: str

    def sentence(self) -> str:
        """Return what was compared, and found."""
        near = self.agreement
        answers = f", and {near.same:,} of {near.answers:,} answers are the same" if near.answers else ""
        return (
            f"Checked on {near.examples:,} examples of {self.split}: the logits of the graph in float32 "
            f"differ from the run's by {near.difference:.1e} of the largest at most{answers}."
        )

    def rows(self) -> list[list[str]]:
        """Return a table of the forms, its head first."""
        head = [
            "",
            f"{self.split} {self.metric.replace('_', ' ')}",
            "MB",
            "ms alone",
            f"ms, {TOGETHER} at once",
        ]
        return [
            head,
            *(
                [
                    form.name,
                    f"{form.metrics[self.metric]:.2f}",
                    f"{form.megabytes:.1f}",
                    f"{form.alone:.2f}",
                    f"{form.together:.2f}",
                ]
                for form in self.forms
            ),
        ]


def check_format(name: str) -> None:
    """Refuse a format that there is not, and GGUF, which others convert to.

    Raises:
        UserError: naming those that there are, or what to run.
    """
    if name == "gguf":
        raise UserError(_GGUF)
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS)
        raise UserError(f"--format: found {name[:60]!r}, expected one of {', '.join(FORMATS)}{hint}")


def export_graph(run: str | Path, output: str | Path, in_int8: bool = False) -> Deployed:
    """Write a run's model as an ONNX graph, once it has given the run's answers on its dev split.

    Args:
        run: a run folder.
        output: a new folder.
        in_int8: quantize its weights, and where it runs its activations, to 8 bits: by channel, over half the
            range, so that sums of two products fit into the 16 bits that CPUs without VNNI have for them
            (``reduce_range`` in ONNX Runtime's documentation of quantization).

    Raises:
        UserError: if ONNX has no form of the model, or the graph answers otherwise; nothing is written then.
    """
    field = f"--format {'int8' if in_int8 else 'onnx'}"
    check_packages(field)
    target, source = new_folder(output), model_folder(Path(run))
    split, examples = _held_out(Path(run), field)
    exported = load_exported(source)
    comparison = Comparison(exported, examples)
    _check_pooling(source, comparison)
    merged = load_merged(source)
    graph = trace(merged.model.cpu().eval(), comparison.has_segments)
    with whole_folder(target, REPEAT) as partial:
        _write(partial, graph, merged)
        models: dict[str, Model] = {f"the run, PyTorch {exported.layout}": comparison.run}
        models["ONNX, float32"] = found = GraphModel(partial)
        agreement = comparison.agreement(found)
        agreement.check(str(target))
        weights = sum(parameter.nbytes for parameter in merged.model.parameters()) / 1e6
        sizes = [weights, _megabytes(partial)]
        if in_int8:
            save(quantized(graph), partial)
            models["ONNX, int8"] = GraphModel(partial)
            sizes.append(_megabytes(partial))
        metric = exported.task.primary_metric
        result = Deployed(split, agreement, _measure(comparison, models, sizes), metric)
        text = _readme(target.name, merged, graph, result, in_int8)
        (partial / "README.md").write_text(text, encoding="utf-8")
    return result


def _held_out(run: Path, field: str) -> tuple[str, Sequence[Example]]:
    """Return the name and the examples of a split that the run has not learned from."""
    for name in ("dev", "test"):
        path = run / "splits" / f"{name}.jsonl"
        if path.is_file() and (examples := read_examples(path)):
            return name, examples
    raise UserError(
        f"{field}: {run} has no examples to compare on, expected a run folder with splits/dev.jsonl or "
        "splits/test.jsonl"
    )


def _check_pooling(folder: Path, comparison: Comparison) -> None:
    if isinstance(comparison.run, PooledModel) and not comparison.run.is_native:
        raise UserError(
            f"{folder}: its head reads the {comparison.run.pooling} of the sub-words, which its class in "
            "transformers does not do; expected a run without task.pooling"
        )


def _write(folder: Path, graph: Any, merged: ExportedModel) -> None:
    """Write a graph with its tokenizer and configuration, which say how its answers are read."""
    # Rows of a packed batch need masks of another shape.
    merged.model.config.fangyan = {**merged.model.config.fangyan, "layout": "padded"}
    save(graph, folder)
    merged.backend.save_pretrained(folder)


def quantized(graph: Any, **options: Any) -> Any:
    """Return a graph whose products are of 8-bit weights and activations; see :func:`export_graph`.

    Args:
        graph: of :func:`fangyan.deployment.tracing.trace`.
        options: of ``transformers.exporters.OnnxRuntimeDynamicConfig``, in place of those that were chosen.
    """
    from transformers.exporters import ExportedModel as Graph
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    config = OnnxRuntimeDynamicConfig(**({"per_channel": True, "reduce_range": True} | options))
    (name,) = graph.components
    component = graph.components[name]
    with quiet():
        program = OnnxRuntimeQuantizer(config).quantize(component.program, {}, graph.export_format)
    return Graph({name: replace(component, program=program)}, graph.export_format, config=graph.config)


def _measure(comparison: Comparison, models: dict[str, Model], sizes: list[float]) -> list[Form]:
    chosen = list(models.values())
    alone, together = (comparison.milliseconds(chosen, count) for count in (1, TOGETHER))
    return [
        Form(name, comparison.metrics(model), *figures)
        for name, model, *figures in zip(models, chosen, sizes, alone, together, strict=True)
    ]


def _megabytes(folder: Path) -> float:
    """Return the size of a graph and its weights."""
    return sum((folder / name).stat().st_size for name in (GRAPH, f"{GRAPH}.data")) / 1e6


def _readme(name: str, merged: ExportedModel, graph: Any, result: Deployed, in_int8: bool) -> str:
    rows = [f"| {' | '.join(row)} |" for row in result.rows()]
    table = "\n".join([rows[0], "|---|" + "---:|" * (len(result.rows()[0]) - 1), *rows[1:]])
    values = graph.program.graph
    return readme(
        name=name,
        model_class=type(merged.model).__name__,
        task=merged.task,
        backend=merged.backend,
        inputs=[value.name for value in values.inputs],
        outputs=[value.name for value in values.outputs],
        longest=merged.max_length,
        checked=f"{result.sentence()}\n\n{table}",
        in_int8=in_int8,
    )
