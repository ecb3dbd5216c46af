"""What each way to put a run's graph into 8 bits costs of its score, and gains.

    python bench/int8_variants.py RUN

Scores, answers that are not the run's, size, and the time of a sentence by itself, all on the dev split and
in as many threads as PyTorch has (OMP_NUM_THREADS).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from fangyan.data.splits import read_examples
from fangyan.deployment.comparison import Comparison
from fangyan.deployment.export import quantized
from fangyan.deployment.tracing import save, trace
from fangyan.inference.graph import GRAPH, GraphModel
from fangyan.inference.load import load_exported, load_merged


def variants(graph: Any) -> dict[str, dict[str, Any]]:
    """Return the options of each variant, by name."""
    products = [node.name for node in graph.program.graph if node.op_type in ("MatMul", "Gemm")]
    return {
        "a scale for each matrix": {"per_channel": False, "reduce_range": False},
        "a scale for each channel": {"reduce_range": False},
        "the same, half the range": {},
        "the same, without the head": {"nodes_to_exclude": products[-1:]},
        "the same, without embeddings": {"op_types_to_quantize": ["MatMul", "Gemm"]},
    }


def main() -> None:
    """Print a table."""
    run = Path(sys.argv[1])
    comparison = Comparison(load_exported(run / "model"), read_examples(run / "splits" / "dev.jsonl"))
    graph = trace(load_merged(run / "model").model.eval(), comparison.has_segments)
    forms = {"float32": graph} | {
        name: quantized(graph, **options) for name, options in variants(graph).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        models, sizes = [], []
        for i, form in enumerate(forms.values()):
            place = Path(folder) / str(i)
            save(form, place)
            models.append(GraphModel(place))
            sizes.append(sum((place / name).stat().st_size for name in (GRAPH, f"{GRAPH}.data")) / 1e6)
        metric = comparison.task.primary_metric
        print(f"| | {metric} | other answers | MB | ms | |\n|---|---:|---:|---:|---:|---:|")
        times = comparison.milliseconds(models, 1)
        for name, model, size, time in zip(forms, models, sizes, times, strict=True):
            near, score = comparison.agreement(model), comparison.metrics(model)[metric]
            others = near.answers - near.same
            print(
                f"| {name} | {score:.2f} | {others} | {size:.1f} | {time:.2f} | {times[0] / time:.1f}x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
