"""Run folders of tiny models that were not trained: recipe, splits and an export, in a second."""

import random

from fangyan.data.splits import write_examples
from fangyan.recipe import Recipe
from fangyan.training.workload import Workload
from task_cases import CASES, TaskCase, words
from tiny_runs import exported

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
    path = folder / name
    exported(run, path / "model")
    (path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    for split in run.splits.keys() - {"train"}:
        write_examples(path / "splits" / f"{split}.jsonl", run.splits[split])
    return path
