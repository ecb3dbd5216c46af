"""Run folders of tiny models that were not trained: recipe, splits and an export, in a second."""

from fangyan.data.splits import write_examples
from fangyan.distributed.process_group import start_distributed
from fangyan.inference.export import export
from fangyan.recipe import Recipe
from fangyan.training.workload import Workload
from task_cases import CASES

BY_NAME = {case.name: case for case in CASES}


def run_folder(case, folder, name="run", seed=0, **sections):
    """Write the run of a task case; another seed is a model with another head."""
    folder.mkdir(exist_ok=True)
    recipe = Recipe.model_validate(case.recipe(folder, name=name, seed=seed, **sections))
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
