"""Run folders of tiny models that were not trained: recipe, splits and an export, in a second."""

import random

from fangyan.data.splits import write_examples
from fangyan.distributed.process_group import start_distributed
from fangyan.inference.export import export
from fangyan.recipe import Recipe
from fangyan.training.workload import Workload
from task_cases import CASES, TaskCase, words

BY_NAME = {case.name: case for case in CASES}


def tagged():
    """Words whose tags follow from their last digits."""
    draw = random.Random(0)
    records = [words(draw) for _ in range(40)]
    return [{"tokens": tokens, "tags": [f"T{token[-1]}" for token in tokens]} for tokens in records]


TAGGER = TaskCase(
    "tags", "XLM-RoBERTa", {"name": "token_classification"}, tagged, None, "", {}, {}, None, (2, False)
)


def run_folder(case, folder, name="run", seed=0, replaced=None, **sections):
    """Write the run of a task case; another seed is a model with another head.

    Sections are merged into the recipe's, and those of ``replaced`` stand in their place.
    """
    folder.mkdir(exist_ok=True)
    sections = case.recipe(folder, name=name, seed=seed, **sections) | (replaced or {})
    recipe = Recipe.model_validate(sections)
    run = Workload(recipe)
    packed = run.model
    start_distributed()
    inference = {
        "task": run.task.name,
        **run.task.export_config(),
        "layout": "rows" if packed.layout == "varlen" else packed.layout,
        "max_length": run.max_length,
        **({"prefixes": recipe.data.prefixes} if recipe.data.prefixes else {}),
    }
    path = folder / name
    export(path / "model", packed.model, run.tokenizer.backend, inference, "", run.base)
    (path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    for split in run.splits.keys() - {"train"}:
        write_examples(path / "splits" / f"{split}.jsonl", run.splits[split])
    return path
