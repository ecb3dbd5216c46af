"""Self-training: a model labels texts, and another learns from them too (Scudder 1965; Yarowsky 1995).

The first run learns from the labels alone. In each round the best model so far labels ``data.unlabelled``,
and a student begins anew with what was labelled confidently beside the labels (noisy students, Xie et al.
2020, arXiv 1911.04252: dropout and hidden sub-words are the noise). A class of which the model is less sure
in general has a lower threshold (Zhang et al. 2021, FlexMatch, arXiv 2110.08263), or it would be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, tee
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from rich.table import Table

from fangyan.data.example import Annotation, Example
from fangyan.data.splits import find_files
from fangyan.data.store import cache_folder, keep_examples
from fangyan.device import reset_peak_memory
from fangyan.distributed.process_group import on_rank_zero, start_distributed
from fangyan.errors import UserError
from fangyan.files import whole_file
from fangyan.inference.annotate import format_of
from fangyan.inference.load import load
from fangyan.recipe import Recipe, parse_recipe
from fangyan.selection.pool import fresh, labelled_examples, read_pool, unlabelled
from fangyan.suggestions import file_like
from fangyan.tasks.predictor import Predictor, Scored
from fangyan.tasks.task import Metrics
from fangyan.terminal import Terminal
from fangyan.training.engine import choose_precision
from fangyan.training.loaded_data import choose_metric
from fangyan.training.repeats import finished_metrics
from fangyan.training.run_folder import check_same_recipe
from fangyan.training.train import train
from fangyan.training.trainer import Result

# Of the run of labels alone.
FIRST = "labelled"
# The recipe of all rounds, once a model has labelled something.
SETTINGS = "rounds.yaml"


def self_train(recipe: Recipe) -> Result:
    """Run all rounds, each in a folder of its own; finished ones are kept, and one that was begun is resumed.

    Args:
        recipe: with ``data.unlabelled``.

    Returns:
        The run whose model is best on dev.

    Raises:
        UserError: naming what is wrong with the texts, or a round that is of another recipe.
    """
    start_distributed()
    recipe = choose_precision(recipe)
    metric, sign = on_rank_zero(partial(_check, recipe))
    results = {FIRST: _run(_round(recipe, FIRST, None))}
    best = FIRST
    for number in range(1, recipe.self_training.rounds + 1):
        name = f"round-{number}"
        file = recipe.folder / f"{name}.jsonl"
        teacher = recipe.folder / best
        if not on_rank_zero(partial(_label, recipe, teacher, file)):
            _say(f"{best} labels no text confidently: expected a lower self_training.threshold")
            break
        results[name] = _run(_round(recipe, name, file))
        best = max(results, key=lambda each: sign * results[each].after["dev"][metric])
    if dist.get_rank() == 0:
        Terminal(highlight=False).print(_table(results, metric))
        _say(f"best on dev: {recipe.folder / best}")
    return results[best]


def _check(recipe: Recipe) -> tuple[str, int]:
    """Return the dev metric that compares rounds, and 1 where more of it is better, else -1.

    Raises:
        UserError: for what would fail when the first run has taken its hours.
    """
    if (recipe.folder / "recipe.yaml").is_file():
        raise UserError(f"run_dir: {recipe.folder} holds a single run, expected another folder for rounds")
    if recipe.data.replay.share:
        raise UserError("data.replay: is given beside data.unlabelled, which takes its place; expected one")
    if recipe.data.prefixes:
        raise UserError("data.unlabelled: is for one data set, found several that texts are told of")
    for pattern in _files(recipe):
        for file in find_files(pattern):
            if not file.is_file():
                raise UserError(f"data.unlabelled: {file}: no such file{file_like(file)}")
    if (recipe.folder / SETTINGS).is_file():
        check_same_recipe(recipe, recipe.folder / SETTINGS)
    task = recipe.task.build(recipe.data.load(recipe.seed), recipe.data)
    if not task.unit_labels:
        raise UserError(
            "data.unlabelled: is for taggers, and classifiers of one class per text; found another "
            f"{task.name}"
        )
    return choose_metric(recipe, task), 1 if task.greater_is_better else -1


def _files(recipe: Recipe) -> Sequence[str]:
    files = recipe.data.unlabelled or ()
    return [files] if isinstance(files, str) else files


def _round(recipe: Recipe, name: str, file: Path | None) -> Recipe:
    """Return the recipe of a round, which replays a file that a model has labelled."""
    content = recipe.model_dump(mode="json")
    data: dict[str, Any] = {**content["data"], "unlabelled": None}
    if file is None:  # which another threshold does not change
        content.pop("self_training")
    else:
        names = (*recipe.task.fields, *(name for name in recipe.data.provided if name == "pair"))
        columns = {name: name for name in names}
        source = {"format": "jsonl", "columns": columns, "train": str(file), "dev": str(file)}
        if "tokens" in names:
            source["tokens"] = recipe.data.token_unit
        data["replay"] = {"share": recipe.self_training.share, "source": source}
    run_dir = str(Path(".") / recipe.folder / name)
    return parse_recipe({**content, "name": f"{recipe.name}-{name}", "run_dir": run_dir, "data": data})


def _run(recipe: Recipe) -> Result:
    """Run a round, or the rest of it."""
    metrics = on_rank_zero(partial(finished_metrics, recipe))
    if metrics is not None:
        _say(f"{recipe.name} is finished, and kept")
        return Result(recipe.folder, {}, metrics, 0, 0.0)
    reset_peak_memory()
    begun = on_rank_zero(recipe.folder.is_dir)
    return train(recipe, resume="auto" if begun else None)


def _label(recipe: Recipe, teacher: Path, file: Path) -> bool:
    """Write what a model labels confidently into a file, unless it is there; return whether there is any."""
    if file.exists():
        return True
    predictor, config = load(teacher), recipe.self_training
    examples = _pool(recipe, teacher, predictor)
    if not examples:
        raise UserError("data.unlabelled: the data has labels of all of its texts, expected others")
    chosen = confident(predictor.score(examples), config.threshold, config.balance)
    _say(f"{teacher.name} labels {len(chosen):,} of {len(examples):,} texts confidently")
    if not chosen:
        return False
    # By which the next start knows that it goes on with the same texts and threshold.
    with whole_file(recipe.folder / SETTINGS) as partial_file:
        partial_file.write_text(recipe.to_yaml(), encoding="utf-8")
    annotations = predictor.annotate(unlabelled(examples[i]) for i in chosen)
    with whole_file(file) as partial_file, partial_file.open("w", encoding="utf-8") as lines:
        for i, annotation in zip(chosen, annotations, strict=True):
            lines.write(_line(examples[i], annotation) + "\n")
    return True


def _pool(recipe: Recipe, teacher: Path, predictor: Predictor) -> Sequence[Example]:
    """Return the texts of all files, less those that the data has labels of, in any split."""
    cache = cache_folder(recipe.data.cache_dir)
    read = (
        read_pool(predictor, file, format_of(teacher, file))
        for pattern in _files(recipe)
        for file in find_files(pattern)
    )
    examples = keep_examples(chain.from_iterable(read), cache)
    indices = fresh(examples, chain(*labelled_examples(teacher, _say)))
    return keep_examples((unlabelled(examples[i]) for i in indices.tolist()), cache)


def _line(example: Example, annotation: Annotation) -> str:
    """Return an example with what is predicted of it, as JSON."""
    kept = {
        name: example.fields[name] for name in ("tokens", "spaces", "text", "pair") if name in example.fields
    }
    predicted = {"tags": annotation.tags} if "tokens" in kept else {"label": annotation.values["label"]}
    return json.dumps({**kept, **predicted}, ensure_ascii=False)


def confident(scored: Iterable[Scored], threshold: float, balance: bool) -> list[int]:
    """Return which examples a model labels confidently, by their indices.

    Args:
        scored: each example's log-probabilities, and what is predicted.
        threshold: probability of an example's label; of tokens, their geometric mean.
        balance: whether the threshold of each class is lower by how sure the model is of it on average, over
            how sure it is of the class that it knows best.
    """
    first, second = tee(map(_predicted, scored))
    classes: dict[int, tuple[float, int]] = {}
    sizes = 0
    for labels_U, log_probabilities_U in first:
        sizes += 1
        for label, value in zip(labels_U.tolist(), log_probabilities_U.tolist(), strict=True):
            total, count = classes.get(label, (0.0, 0))
            classes[label] = total + float(np.exp(value)), count + 1
    if not sizes:
        return []
    sureness = np.ones(1 + max(classes, default=0))
    if balance:
        for label, (total, count) in classes.items():
            sureness[label] = total / count
        sureness /= max(total / count for total, count in classes.values())
    needed = np.log(threshold * sureness)
    return [
        i
        for i, (labels_U, log_probabilities_U) in enumerate(second)
        if len(labels_U) and (log_probabilities_U - needed[labels_U]).mean() >= 0.0
    ]


def _predicted(scored: Scored) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the class of each unit of an example, and its log-probability: (U,) both."""
    labels_U = scored.classes_U
    return labels_U, np.take_along_axis(scored.log_probabilities_UC, labels_U[:, None], -1)[:, 0]


def _table(results: dict[str, Result], metric: str) -> Table:
    table = Table("model", title=metric.replace("_", " "), title_justify="left")
    splits = [split for split in ("dev", "test") if split in results[FIRST].after]
    for split in splits:
        table.add_column(split, justify="right")
    for name, result in results.items():
        scores: dict[str, Metrics] = result.after
        table.add_row(name, *(f"{scores[split][metric]:.2f}" for split in splits))
    return table


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)
