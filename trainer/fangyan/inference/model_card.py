"""The README.md of an exported model, as the Hub has them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import transformers
import yaml

from fangyan.data.splits import DataConfig
from fangyan.models.loading import ModelConfig
from fangyan.tasks.task import Metrics, Task

_CARD = """---
{front}
---
# {name}

`{model_class}`, {work} with fangyan from `{path}`{random}.

Data: {source}. Split:
{split}

Metrics{unit}:

{table}

```python
{usage}
```
{note}
Trained with transformers {version} and this recipe:

```yaml
{recipe}
```
"""


def model_card(
    *,
    name: str,
    model: Any,
    model_config: ModelConfig,
    data: DataConfig,
    task: Task,
    is_adapter: bool,
    floor: Mapping[str, Metrics],
    before: Mapping[str, Metrics],
    after: Mapping[str, Metrics],
    recipe_yaml: str,
) -> str:
    """Return the model card: data, licence, splits, metrics and how to load the model.

    Args:
        name: of the recipe.
        model: of transformers.
        model_config: what it was loaded by.
        data: what it was trained on.
        task: what it learned.
        is_adapter: whether an adapter was trained.
        floor: metrics per split of a guess.
        before: of the model before training.
        after: of it afterwards.
        recipe_yaml: the whole recipe.
    """
    front = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": task.pipeline_tag,
        "license": data.licence,
        "language": [data.language] if data.language else None,
    }
    front = {key: value for key, value in front.items() if value is not None}
    return _CARD.format(
        front=yaml.safe_dump(front, sort_keys=False).strip(),
        name=name,
        model_class=type(model).__name__,
        work="an adapter of it trained"
        if is_adapter
        else "trained"
        if model_config.is_scratch
        else "fine-tuned",
        path=model_config.path,
        random="" if model_config.pretrained else " (random weights)",
        source=data.corpus or f"{data.format} files of the recipe",
        split="\n".join(f"- {split}: {_describe(value)}" for split, value in data.parts.items() if value),
        unit=f" in {task.metric_unit}" if task.metric_unit else "",
        table=_table(floor, before, after),
        note="".join(f"\n{note}\n" for note in (task.usage_note, _prefix_note(data)) if note),
        usage=_usage(task, model.config.num_labels, is_adapter, model_config),
        version=transformers.__version__,
        recipe=recipe_yaml.strip(),
    )


def _prefix_note(data: DataConfig) -> str:
    if not data.prefixes:
        return ""
    return (
        "Each text begins with the name of its data set, as a word of its own before tokens, else with a "
        f"colon after it: {', '.join(data.prefixes)}."
    )


def _describe(split: Any) -> str:
    if isinstance(split, float):
        return f"{split:g} of train, held out by seed"
    return ", ".join(split) if isinstance(split, list) else str(split)


def metrics_rows(
    floor: Mapping[str, Metrics], before: Mapping[str, Metrics], after: Mapping[str, Metrics]
) -> list[list[str]]:
    """Return a table of metrics of a guess, and before and after training, per split; its head first."""
    whens = (("floor", floor), ("before", before), ("after", after))
    names = list(next(iter(after.values())))
    rows = [["split", *(name.replace("_", " ") for name in names)]]
    for split, (when, metrics) in product(after, whens):
        if split in metrics or when != "floor":
            values = (metrics.get(split, {}).get(name) for name in names)
            rows.append([f"{split} {when}", *("–" if v is None else f"{v:,.2f}" for v in values)])
    return rows


def _table(*metrics: Mapping[str, Metrics]) -> str:
    rows = metrics_rows(*metrics)
    head, *lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---|" + "---:|" * (len(rows[0]) - 1), *lines])


def _usage(task: Task, num_labels: int, is_adapter: bool, model_config: ModelConfig) -> str:
    auto = task.auto_model.__name__
    folder = '"path/to/this/folder"'
    if not is_adapter:
        lines = [
            f"from transformers import {auto}, AutoTokenizer",
            "",
            f"model = {auto}.from_pretrained({folder})",
        ]
    else:
        base = f'"{model_config.path}"' if model_config.is_on_hub_or_disk else '"path/to/this/folder/base"'
        labels = f", num_labels={num_labels}" if task.has_new_head else ""
        lines = [
            "from peft import PeftModel",
            f"from transformers import {auto}, AutoTokenizer",
            "",
            f"base = {auto}.from_pretrained({base}{labels})",
            f"model = PeftModel.from_pretrained(base, {folder})",
        ]
    return "\n".join([*lines, f"tokenizer = AutoTokenizer.from_pretrained({folder})"])
