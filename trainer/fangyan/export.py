"""A trained model as plain transformers files, with a model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import transformers
import yaml
from torch import Tensor

from fangyan.recipe import Recipe

Scores = dict[str, float]

# Where the corpora and models that come with a recipe say what may be done with them.
_LICENCES = {"hkcancor": ("HKCanCor (Luke & Wong 2015), CC BY 4.0", "cc-by-4.0")}


def export(
    folder: Path,
    model: Any,
    tokenizer: Any,
    weights: dict[str, Tensor],
    recipe: Recipe,
    prediction: dict[str, Any],
    before: dict[str, Scores],
    after: dict[str, Scores],
) -> None:
    """Writes ``folder`` beside itself and renames it into place.

    Args:
        model: the transformers model, for its class and configuration.
        weights: its state dict, whole.
        prediction: what prediction needs beyond transformers; goes into config.json as ``fangyan``,
            which everyone else ignores.
        before, after: scores of each part.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.config.fangyan = prediction
    model.config._attn_implementation = None
    model.save_pretrained(partial, state_dict=weights)
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(model_card(recipe, type(model).__name__, before, after))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def model_card(recipe: Recipe, architecture: str, before: dict[str, Scores], after: dict[str, Scores]) -> str:
    """The model card: data, licence, split, scores and how to use it."""
    data = recipe.data
    source, licence = _LICENCES.get(data.format, (f"{data.format} files of the recipe", None))
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "token-classification"}
    if licence:
        front["license"] = licence
    if data.format == "hkcancor":
        front["language"] = ["yue"]
    split = "\n".join(
        f"- {part}: {_describe_part(getattr(data, part))}"
        for part in ("train", "dev", "test")
        if getattr(data, part)
    )
    names = list(next(iter(after.values())))
    columns = [(part, when) for part in after for when in ("before", "after")]
    scores = {"before": before, "after": after}
    header = "| score | " + " | ".join(f"{part} {when}" for part, when in columns) + " |"
    rule = "|---|" + "---:|" * len(columns)
    rows = [
        f"| {name.replace('_', ' ')} | "
        + " | ".join(f"{scores[when][part].get(name, 0.0):.2f}" for part, when in columns)
        + " |"
        for name in names
    ]
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---
# {recipe.name}

`{architecture}`, fine-tuned with [fangyan](https://pypi.org/project/fangyan/) from
`{recipe.model.path}`{"" if recipe.model.pretrained else " (random weights)"}.

Data: {source}; one tag for each of its {data.tokens}. Split:
{split}

Scores in percent:

{chr(10).join([header, rule, *rows])}

```python
from transformers import AutoModelForTokenClassification, AutoTokenizer

model = AutoModelForTokenClassification.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

Trained with transformers {transformers.__version__} and this recipe:

```yaml
{recipe.to_yaml().strip()}
```
"""


def _describe_part(part: Any) -> str:
    if isinstance(part, float):
        return f"{part:g} of train, held out by seed"
    return ", ".join(part) if isinstance(part, list) else str(part)
