"""Measure memory and communication of DeepSpeed's ZeRO stages against the formulas of the ZeRO paper.

    python bench/zero_stages.py --folder /var/tmp/zero --results --plot docs/zero-stages.png

Trains a random ELECTRA of 30 million parameters in float32 for some steps on CPU ranks (gloo), with AdamW, in
processes of its own for each stage and number of ranks. Memory is that of all tensors alive, counted once per
storage: between backward and optimizer's step, and at its peak, where gradients are reduced; the largest rank
counts. Bytes sent are the kernel's own count of payload on every TCP socket of a rank (TCP_INFO, without
retransmissions), over one step; the mean of the ranks. Both are exact. Prints Markdown tables.

The formulas are those of Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models", in float32 (weights 4 bytes per parameter, gradients 4, Adam's states 8), with what a ring
of N ranks really moves: (N - 1) / N of what the paper counts for many.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fangyan_bench.harness.machine import BENCH, machine_name

# DeepSpeed's defaults, and the paper's ZeRO-3, which gathers the weights in the forward and in the backward.
VARIANTS: dict[str, dict[str, int]] = {
    "1": {},
    "2": {},
    "3": {},
    "3, gathered twice": {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0},
}
DATA = ("data.train=[FC-R005_v2]", "data.dev=[FC-052_v2]", "data.test=null", "train.batch_tokens=256")
STEPS = 3  # ZeRO-3 learns the order of layers in the first, and the last is measured
LARGE = 1 << 20  # bytes; reductions of norms and flags are smaller


def write_model(folder: Path, layers: int = 8) -> None:
    """Write a model whose layers ZeRO-3 shards: DeepSpeed keeps matrices of up to 1e5 elements whole."""
    from fangyan.models.loading import ModelConfig
    from fangyan.tasks.token_classification.task import TokenClassification
    from transformers import ElectraConfig

    task = TokenClassification(["a", "b"], "plain")
    model, tokenizer = ModelConfig().load(task.auto_model, 0, task.model_kwargs())
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 512, "embedding_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    ElectraConfig(**model.config.to_diff_dict() | sizes | {"num_hidden_layers": layers}).save_pretrained(
        folder
    )


def bytes_sent() -> int:
    """Return the payload that all TCP sockets of this process have sent, by the kernel's count."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            own = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:  # no socket, or closed since
            continue
        with own:
            if own.family in (socket.AF_INET, socket.AF_INET6) and own.type == socket.SOCK_STREAM:
                info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 216)
                sent, again = (int.from_bytes(info[i : i + 8], sys.byteorder) for i in (200, 208))
                total += sent - again  # tcpi_bytes_sent and tcpi_bytes_retrans of linux/tcp.h
    return total


def tensors_alive() -> dict[int, int]:
    """Return the bytes of every storage that a tensor of this process holds, by address."""
    import torch

    gc.collect()
    found = {}
    for tensor in [entry for entry in gc.get_objects() if isinstance(entry, torch.Tensor)]:
        for one in (tensor, tensor.grad if tensor.is_leaf else None):
            if one is not None:
                found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return found


class Memory:
    """Samples of the tensors alive, beyond those that there were before the engine.

    Args:
        trainer: before its engine is started.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
        self._before = tensors_alive().keys() - weights
        self.samples: list[dict[str, int]] = []

    def sample(self, *_: Any, **__: Any) -> None:
        """Add the bytes of weights, DeepSpeed's copy of them, Adam's states, and all else: gradients."""
        alive = {key: size for key, size in tensors_alive().items() if key not in self._before}
        parts = {}
        for name, tensors in self._parts():
            keys = {tensor.untyped_storage().data_ptr() for tensor in tensors} & alive.keys()
            parts[name] = sum(alive.pop(key) for key in keys)
        self.samples.append(parts | {"gradients": sum(alive.values())})

    def _parts(self) -> Iterator[tuple[str, list[Any]]]:
        parameters = list(self._trainer.model.parameters())
        yield "weights", parameters + [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
        optimizer = self._trainer.optimizer
        yield "copy", [p for group in optimizer.param_groups for p in group["params"]]
        states = [state for of_one in optimizer.state.values() for state in of_one.values()]
        yield "Adam", [state for state in states if hasattr(state, "untyped_storage")]

    @property
    def peak(self) -> int:
        """Return the bytes of the largest sample."""
        return max(sum(sample.values()) for sample in self.samples)


def watch(owner: Any, name: str, call: Any) -> None:
    """Call ``call`` with the arguments before every call of a method or function."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def measure(folder: Path, variant: str) -> dict[str, Any] | None:
    """Train some steps on this rank; return what all ranks took, on rank 0."""
    import deepspeed
    import torch.distributed as dist
    from fangyan.distributed.process_group import gathered, start_distributed, stop_distributed
    from fangyan.recipe import load_recipe
    from fangyan.training import engine
    from fangyan.training.trainer import Trainer

    rank, ranks = start_distributed()
    model = (f"model.path={folder}", "model.pretrained=false", "optimizer.layer_decay=1.0")
    options = [*DATA, *model, f"engine.zero_stage={variant[0]}", "engine.precision=fp32"]
    trainer = Trainer(load_recipe("cantonese-pos", options))
    plain_config = engine.deepspeed_config

    def config(*args: Any) -> dict[str, Any]:
        found = plain_config(*args)
        found["zero_optimization"] |= VARIANTS[variant]
        return found

    engine.deepspeed_config = config
    parameters = sum(p.numel() for p in trainer.model.parameters())
    memory = Memory(trainer)
    trainer.start_engine()
    for step in range(STEPS):
        if step == STEPS - 1:
            deepspeed.comm.configure(enabled=True, prof_all=True)
        dist.barrier()
        sent = bytes_sent()
        trainer.train_step(trainer.batches[0][step], step)
        dist.barrier()
        sent = bytes_sent() - sent
    asked = {
        name: sum(size * entry[0] for size, entry in sizes.items()) * (ranks if "gather" in name else 1)
        for name, sizes in deepspeed.comm.comm.comms_logger.comms_dict.items()
    }
    deepspeed.comm.configure(enabled=False)
    # One step more for memory: it is slow with samples.
    for name in ("all_reduce", "reduce_scatter_fn"):
        watch(deepspeed.comm, name, lambda *tensors, **_: tensors[0].nbytes >= LARGE and memory.sample())
    watch(trainer.engine, "step", memory.sample)
    trainer.train_step(trainer.batches[0][STEPS], STEPS)
    of_all = gathered((sent, memory.samples[-1], memory.peak))
    stop_distributed()
    found = {
        "stage": variant,
        "ranks": ranks,
        "parameters": parameters,
        "sent": sum(sent for sent, _, _ in of_all) / ranks,
        "collectives": asked,
        "states": max((states for _, states, _ in of_all), key=lambda parts: sum(parts.values())),
        "peak": max(peak for _, _, peak in of_all),
    }
    return found if rank == 0 else None


def formulas(stage: str, ranks: int) -> tuple[float, float]:
    """Return the paper's bytes of model states, and bytes sent per step, of one rank per parameter."""
    number = int(stage[0])
    weights, gradients, states = (4 / (ranks if number >= n else 1) for n in (3, 2, 1))
    elements = 3 if number == 3 else 2
    return weights + gradients + 2 * states, 4 * elements * (ranks - 1) / ranks


def run(folder: Path, stage: str, ranks: int) -> dict[str, Any]:
    """Measure a stage on some ranks, in processes of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [__file__, "--folder", str(folder), "--one", stage]
    path = os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        what = f"exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
        raise RuntimeError(f"ZeRO {stage} on {ranks} ranks: {what}")
    line = done.stdout.splitlines()[-1]
    print(line, file=sys.stderr, flush=True)  # what there is, should a later one fail
    found: dict[str, Any] = json.loads(line)
    return found


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of two tables: memory in bytes per parameter, and bytes sent per step."""
    parts = list(rows[0]["states"])
    yield f"| ZeRO | ranks | formula | measured | ratio | {' | '.join(parts)} | peak of the backward |"
    yield "|---|" + "---:|" * (5 + len(parts))
    for row in rows:
        formula = formulas(row["stage"], row["ranks"])[0]
        each = [size / row["parameters"] for size in row["states"].values()]
        cells = [formula, sum(each), sum(each) / formula, *each, row["peak"] / row["parameters"]]
        yield f"| {row['stage']} | {row['ranks']} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"
    yield ""
    yield "| ZeRO | ranks | formula, MB | measured, MB | ratio | all-reduced | gathered | reduce-scattered |"
    yield "|---|" + "---:|" * 7
    for row in rows:
        formula = formulas(row["stage"], row["ranks"])[1] * row["parameters"]
        ratio = f"{row['sent'] / formula:.4f}" if formula else ""
        asked = [
            sum(size for name, size in row["collectives"].items() if kind in name) / 4 / row["parameters"]
            for kind in ("all_reduce", "all_gather", "reduce_scatter")
        ]
        sizes = f"{formula / 1e6:.2f} | {row['sent'] / 1e6:.2f} | {ratio}"
        shown = " | ".join(f"{size:.2f}" for size in asked)
        yield f"| {row['stage']} | {row['ranks']} | {sizes} | {shown} |"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw what was measured as bars, and the formulas as lines across them."""
    import matplotlib.pyplot as plt

    figure, (memory, sent) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    places = range(len(rows))
    below = [0.0] * len(rows)
    for part in rows[0]["states"]:
        sizes = [row["states"][part] / row["parameters"] for row in rows]
        memory.bar(places, sizes, bottom=below, label=part)
        below = [one + other for one, other in zip(below, sizes, strict=True)]
    sent.bar(places, [row["sent"] / row["parameters"] for row in rows], label="sent")
    for i, axes in enumerate((memory, sent)):
        expected = [formulas(row["stage"], row["ranks"])[i] for row in rows]
        axes.hlines(expected, [p - 0.45 for p in places], [p + 0.45 for p in places], "k", label="formula")
        names = [f"{row['stage']}; {row['ranks']}" for row in rows]
        axes.set_xticks(list(places), names, rotation=60, ha="right", fontsize=8)
        axes.set_xlabel("ZeRO stage; ranks")
        axes.legend(loc="upper left", ncols=3)
    memory.set_ylabel("memory of a rank, bytes per parameter")
    memory.set_ylim(0, 1.4 * max(below))
    sent.set_ylabel("sent per rank and step, bytes per parameter")
    sent.set_ylim(0, 20)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run every stage on every number of ranks, print the tables, write and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the model; a new one")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--results", action="store_true", help="write bench/results/<machine>/zero-stages.*")
    parser.add_argument("--plot", type=Path, help="a PNG")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = measure(options.folder, options.one)
        if found:
            print(json.dumps(found))
        return
    if options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"{options.folder} holds files, expected an empty or a new folder")
    write_model(options.folder)
    rows = [run(options.folder, stage, ranks) for stage in VARIANTS for ranks in options.ranks]
    shutil.rmtree(options.folder)
    text = "\n".join(tables(rows))
    print(text)
    if options.results:
        folder = BENCH / "results" / machine_name()
        folder.mkdir(exist_ok=True)
        (folder / "zero-stages.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        (folder / "zero-stages.md").write_text(text + "\n", encoding="utf-8")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
