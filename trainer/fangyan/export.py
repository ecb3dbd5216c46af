"""A trained model as plain transformers files, or an adapter as PEFT's, with a model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import transformers
import yaml
from safetensors.torch import save_file
from torch import Tensor

from fangyan.models import comes_from_outside, load_causal_model, load_token_classifier
from fangyan.recipe import Recipe

Scores = dict[str, float]

# Where the corpora and models that come with a recipe say what may be done with them.
_LICENCES = {
    "hkcancor": ("HKCanCor (Luke & Wong 2015), CC BY 4.0", "cc-by-4.0"),
    "common_voice": ("the Cantonese sentences of Common Voice, MPL 2.0", "mpl-2.0"),
}


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
    (partial / "README.md").write_text(model_card(recipe, model, before, after))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def export_adapter(
    folder: Path,
    model: Any,
    tokenizer: Any,
    weights: dict[str, Tensor],
    recipe: Recipe,
    prediction: dict[str, Any],
    before: dict[str, Scores],
    after: dict[str, Scores],
) -> None:
    """As :func:`export`, but of PEFT's model, and of what was trained alone.

    What only this package can load (a model inside another package, random weights) is written to ``base``
    beside ``folder``, as plain transformers files, for others to put the adapter on.
    """
    from peft import get_peft_model_state_dict

    base = model.get_base_model()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    base.config.fangyan = prediction
    base.config._attn_implementation = None
    source = recipe.model.path
    if not comes_from_outside(recipe.model):
        source = str((folder.parent / "base").resolve())
        _write_base(Path(source), base, tokenizer, recipe)
    model.peft_config["default"].base_model_name_or_path = source
    # The state dict is of what was trained: PEFT looks up in it what an adapter's file holds.
    adapter = get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
    partial.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in adapter.items()}, partial / "adapter_model.safetensors"
    )
    model.peft_config["default"].inference_mode = True
    model.peft_config["default"].save_pretrained(partial)
    model.peft_config["default"].inference_mode = False
    base.config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(model_card(recipe, base, before, after))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _write_base(folder: Path, base: Any, tokenizer: Any, recipe: Recipe) -> None:
    """The model that an adapter was trained on: loaded again, since the run's may be sharded or quantized."""
    if recipe.task.name == "language_modelling":
        model, _ = load_causal_model(recipe.model, recipe.seed)
    else:
        labels = [base.config.id2label[i] for i in range(base.config.num_labels)]
        model, _ = load_token_classifier(recipe.model, labels, recipe.seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def model_card(recipe: Recipe, model: Any, before: dict[str, Scores], after: dict[str, Scores]) -> str:
    """The model card: data, licence, split, scores and how to use it."""
    data = recipe.data
    source, licence = _LICENCES.get(data.format, (f"{data.format} files of the recipe", None))
    causal = recipe.task.name == "language_modelling"
    adapter = recipe.adapt.method != "full"
    front: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation" if causal else "token-classification",
    }
    if licence:
        front["license"] = licence
    if data.format in ("hkcancor", "common_voice"):
        front["language"] = ["yue"]
    work = "an adapter of it trained" if adapter else "fine-tuned"
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

`{type(model).__name__}`, {work} with [fangyan](https://pypi.org/project/fangyan/) from
`{recipe.model.path}`{"" if recipe.model.pretrained else " (random weights)"}.

Data: {source}{"" if causal else f"; one tag for each of its {data.tokens}"}. Split:
{split}

Scores{"" if causal else " in percent"}:

{chr(10).join([header, rule, *rows])}

```python
{_usage(recipe, model.config.num_labels)}
```

Trained with transformers {transformers.__version__} and this recipe:

```yaml
{recipe.to_yaml().strip()}
```
"""


def _usage(recipe: Recipe, labels: int) -> str:
    kind = "CausalLM" if recipe.task.name == "language_modelling" else "TokenClassification"
    folder = "path/to/this/folder"
    if recipe.adapt.method == "full":
        lines = [f"from transformers import AutoModelFor{kind}, AutoTokenizer", ""]
        lines += [f'model = AutoModelFor{kind}.from_pretrained("{folder}")']
    else:
        lines = [f"from peft import AutoPeftModelFor{kind}", "from transformers import AutoTokenizer", ""]
        heads = "" if kind == "CausalLM" else f", num_labels={labels}"
        lines += [f'model = AutoPeftModelFor{kind}.from_pretrained("{folder}"{heads})']
    return "\n".join([*lines, f'tokenizer = AutoTokenizer.from_pretrained("{folder}")'])


def _describe_part(part: Any) -> str:
    if isinstance(part, float):
        return f"{part:g} of train, held out by seed"
    return ", ".join(part) if isinstance(part, list) else str(part)
