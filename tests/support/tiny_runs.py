"""Runs of tiny models before their engine: data, model and adapter, a few steps, an export."""

import random

import torch
from fangyan.data.packing import collate
from fangyan.distributed.process_group import start_distributed
from fangyan.inference.export import export
from fangyan.recipe import Recipe
from fangyan.training.workload import Workload
from model_families import save

# Some are longer than the windows and chunks, and all than a row.
LENGTHS = (3, 40, 31, 12, 12)


def sentences(seed=0):
    draw = random.Random(seed)
    return [[f"w{draw.randint(10, 80)}" for _ in range(length)] for length in LENGTHS]


def workload(family, folder, **sections):
    """A run of the family before its engine, on a few sentences."""
    save(family, folder / "base", **({} if family.causal else {"num_labels": 3}))
    lines = [" ".join(words) for words in sentences()]
    if not family.causal:
        lines = ["".join(f"{word} {'XYZ'[int(word[1:]) % 3]}\n" for word in words) for words in sentences()]
    (folder / "data.txt").write_text("\n".join(lines), encoding="utf-8")
    return run_of(family, folder, **sections)


def run_of(family, folder, **sections):
    data = str(folder / "data.txt")
    recipe = {
        "name": "tiny",
        "task": {"name": "causal_lm" if family.causal else "token_classification"},
        "data": {"format": "text" if family.causal else "conll", "train": data, "dev": data},
        "model": {"path": str(folder / "base")},
        "adaptation": {"name": "lora", "rank": 4},
        "schedule": {"warmup": 0.0},
    }
    return Workload(Recipe.model_validate(recipe | sections))


def plain_logits(model, sequences):
    """The logits of a plain transformers model, of each sequence alone."""
    with torch.no_grad():
        return [model.eval()(input_ids=torch.tensor([s.input_ids])).logits[0] for s in sequences]


def packed_logits(packed, sequences, pad_id):
    batch = collate(sequences, pad_id, packed.row_width)
    with torch.no_grad():
        logits = packed.eval().logits(batch)
        loss = packed.loss(batch)
    spans = [
        logits[row, column : column + len(sequence.input_ids)]
        for sequence, (row, column) in zip(batch.sequences, batch.offsets, strict=True)
    ]
    return spans, loss


def assert_same(found, expected):
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def exported(run, folder):
    """Export a run's model as the trainer does."""
    start_distributed()
    export(folder, run.model.model, run.tokenizer.backend, run.inference_config, "", run.base)
    return folder


def learn(run, steps=4):
    """Train a few steps: the loss falls, and every adapter moves."""
    trained = [p for p in run.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-2)
    losses = []
    for step in range(steps):
        batch = run.micro_batch(list(range(len(run.sequences))), f"{step}/0")
        loss = run.model.train().loss(batch, float(batch.num_valid))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    adapters = {name: p for name, p in run.model.named_parameters() if "lora_B" in name}
    assert adapters
    assert [name for name, p in adapters.items() if not p.any()] == []
