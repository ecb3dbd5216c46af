"""Whole runs of each task on a tiny model: on one rank and two, resumed, adapters, and their exports."""

import json
import shutil

import fangyan
import pytest
import torch
import transformers
import yaml
from fangyan.adaptation.peft_model import without_peft_warnings
from fangyan.recipe import Recipe
from fangyan.training.train import train
from fangyan.training.workload import Workload
from peft import PeftModel
from task_cases import CASES

pytestmark = pytest.mark.slow


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


def run(case, folder, name="run", resume=None, **sections):
    """Train in this process."""
    recipe = case.recipe(folder, run_dir=str(folder / name), **sections)
    return train(Recipe.model_validate(recipe), resume=resume)


def losses(folder, name="run"):
    lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]


def test_run_learns_resumes_exactly_and_exports(case, tmp_path):
    result = run(case, tmp_path)
    whole = losses(tmp_path)
    assert min(whole[-4:]) < whole[0]
    metric = next(iter(result.after["dev"]))
    assert result.after["dev"][metric] != result.before["dev"][metric]
    # The same from the middle of an epoch on.
    shutil.copytree(tmp_path / "run", tmp_path / "again", symlinks=True)
    (checkpoint,) = (tmp_path / "again/checkpoints").glob("step-000002")
    again = run(case, tmp_path, "again", resume=checkpoint)
    assert losses(tmp_path, "again") == whole
    assert again.after == result.after
    # Alone, as plain transformers has it.
    folder = tmp_path / "run" / "model"
    model = getattr(transformers, case.auto_model).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    case.check(fangyan.load(tmp_path / "run"), model, tokenizer)
    found = fangyan.evaluate(tmp_path / "run", answers=0)
    assert found == {name: pytest.approx(value, rel=1e-4) for name, value in result.after["dev"].items()}


def test_losses_are_those_of_a_plain_loop(case, tmp_path):
    """Padded rows, the loss of transformers' own class, torch's AdamW: as one would write it by hand."""
    task = {name: value for name, value in case.task.items() if name != "class_weights"}
    sections = {"optimizer": {"weight_decay": 0.0}, "model": {"hidden_dropout": 0.0}}
    recipe = {**case.recipe(tmp_path, run_dir=str(tmp_path / "run"), **sections), "task": task}
    recipe = Recipe.model_validate(recipe)
    train(recipe)
    workload = Workload(recipe)
    arguments = workload.task.auto_model, recipe.seed, workload.task.model_kwargs()
    model, backend = recipe.model.load(*arguments, train=workload.splits["train"])
    workload.task.use_model(model, backend)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2, eps=1e-4, weight_decay=0.0)
    batches = [batch for epoch in workload.batches for batch in epoch]
    schedule = transformers.get_scheduler("linear", optimizer, 0, len(batches))
    expected = []
    for step, indices in enumerate(batches):
        chosen = workload.micro_batch(indices, f"{step}/0").sequences
        loss = model(**padded(chosen, backend.pad_token_id, case.labels)).loss
        expected.append(float(loss.detach()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-5)


def padded(sequences, pad_id, labels):
    """Return a batch as transformers' own classes take it."""
    width = max(len(sequence.input_ids) for sequence in sequences)

    def rows(values, empty):
        return torch.tensor([value + [empty] * (width - len(value)) for value in values])

    batch = {
        "input_ids": rows([s.input_ids for s in sequences], pad_id),
        "attention_mask": rows([[1] * len(s.input_ids) for s in sequences], 0),
    }
    found = labels(sequences, rows)
    batch |= found if isinstance(found, dict) else {"labels": found}
    if sequences[0].segments:
        batch["token_type_ids"] = rows([s.segments for s in sequences], 0)
    return batch


@pytest.mark.parametrize("case", [case for case in CASES if case.family], ids=lambda case: case.name)
def test_adapter_is_what_peft_loads(case, tmp_path):
    run(case, tmp_path, adaptation={"name": "lora", "rank": 4})
    folder = tmp_path / "run" / "model"
    config = transformers.AutoConfig.from_pretrained(folder)
    base = getattr(transformers, case.auto_model).from_pretrained(tmp_path / "base", config=config)
    with without_peft_warnings():
        model = PeftModel.from_pretrained(base, folder).eval()
    case.check(fangyan.load(tmp_path / "run"), model, transformers.AutoTokenizer.from_pretrained(folder))


@pytest.mark.ranks
def test_two_ranks_are_one(case, cli):
    """With full weights or an adapter, at a stage of ZeRO that shards them."""
    stage, with_adapter = case.ranks
    sections = {"model": {"hidden_dropout": 0.0}}
    if with_adapter:
        sections["adaptation"] = {"name": "lora", "rank": 4}
    run(case, cli.folder, "one", **sections)
    recipe = case.recipe(cli.folder, run_dir="run", engine={"zero_stage": stage}, **sections)
    (cli.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    cli("train", "recipe.yaml", ranks=2)
    assert losses(cli.folder) == pytest.approx(losses(cli.folder, "one"), rel=1e-5)
