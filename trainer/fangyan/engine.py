"""The DeepSpeed engine of a recipe: process group, configuration, model and optimizer in one."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from fangyan_kernels.capability import bfloat16_missing
from torch import Tensor, nn
from transformers import get_scheduler

import fangyan.accelerator  # noqa: F401  (before DeepSpeed)
from fangyan.bf16_step import use_one_pass
from fangyan.errors import UserError
from fangyan.optimizer import build_optimizer, keep_full_precision_states, parameter_groups
from fangyan.recipe import Recipe


def start_distributed() -> tuple[int, int]:
    """Joins the launcher's process group, or starts one of a single process; gives (rank, ranks)."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls `ninja` by name: a virtual environment's own need not be on the path.
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ["PATH"]
    if "RANK" not in os.environ and not dist.is_initialized():
        # A group of one needs no port, and left to itself DeepSpeed would look for MPI.
        backend = get_accelerator().communication_backend_name()
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        os.environ["LOCAL_RANK"] = "0"  # deepspeed.initialize asks for it
    deepspeed.init_distributed(dist_backend=get_accelerator().communication_backend_name())
    _unlink_shared_memory()
    return dist.get_rank(), dist.get_world_size()


def _unlink_shared_memory() -> None:
    """Frees the names of DeepSpeed's buffers between CPU ranks: it leaves 69 MB of memory a rank and run.

    Every rank has mapped all of them by now, and keeps them until it ends, however it ends.
    """
    if dist.get_world_size() == 1 or get_accelerator().device_name() != "cpu":
        return
    dist.barrier()
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{dist.get_rank()}"
    Path("/dev/shm", name).unlink(missing_ok=True)


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device(get_accelerator().current_device_name())


def check_precision(recipe: Recipe) -> None:
    """Before anything is loaded: PyTorch would emulate, and then a kernel refuse, what the GPU does not have.

    Raises:
        UserError: for bf16 on a GPU that has none.
    """
    reason = bfloat16_missing(device()) if recipe.engine.precision == "bf16" else None
    if reason:
        raise UserError(f"engine.precision is bf16, which {reason}; expected fp32")


def has_fast_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself, faster than float32; other processors emulate it.

    The Cantonese recipe's step on one processor, over its step in float32: 0.55 of the time by its own
    products, 2.6 times with oneDNN held to AVX-512 (``ONEDNN_MAX_CPU_ISA=AVX512_CORE``), 25 times to AVX2.
    """
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM's


def deepspeed_config(recipe: Recipe, trained: int) -> dict[str, Any]:
    """What DeepSpeed is told; it accepts unknown top-level keys silently, so none is free text.

    Args:
        trained: numbers that the optimizer steps. DeepSpeed's buffer for gradients is no larger: by default
            it takes a gigabyte of a GPU, whatever the model.
    """
    zero: dict[str, Any] = {"stage": recipe.engine.zero_stage, "reduce_bucket_size": gradient_buffer(trained)}
    if recipe.engine.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        # A batch is what the loop hands over: DeepSpeed needs to know the number of passes alone.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": recipe.train.gradient_accumulation_steps,
        "gradient_clipping": recipe.train.gradient_clipping,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # ours step offloaded partitions as fast
        "bf16": {"enabled": recipe.engine.precision == "bf16"},
        "steps_per_print": sys.maxsize,
    }


def gradient_buffer(trained: int) -> int:
    """Numbers in DeepSpeed's buffer for gradients; 5e8 is its default."""
    return min(trained, 500_000_000)


def build_engine(recipe: Recipe, model: nn.Module, total_steps: int) -> tuple[Any, torch.optim.Optimizer]:
    """Wraps the model in a DeepSpeed engine; gives it with the optimizer inside it.

    Args:
        total_steps: optimizer steps of the whole run, for the learning rate's schedule.
    """
    on_cpu = device().type == "cpu" or recipe.engine.offload == "optimizer"
    groups = parameter_groups(model, recipe.optimizer)
    optimizer = build_optimizer(groups, recipe.optimizer, total_steps, on_cpu)
    name = {"constant": "constant_with_warmup"}.get(recipe.schedule.decay, recipe.schedule.decay)
    schedule = get_scheduler(name, optimizer, round(recipe.schedule.warmup * total_steps), total_steps)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    config = deepspeed_config(recipe, trained)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=schedule, config=config)
    if recipe.engine.zero_stage == 0:
        # In bf16 DeepSpeed has taken a step on zero gradients: at rate 0 it moved no weight, and
        # forgetting its states takes its count of steps back to 0.
        optimizer.state.clear()
        use_one_pass(engine.optimizer, optimizer)
        # Alone, DeepSpeed would still lay all gradients side by side, reduce them and copy them back.
        engine.enable_backward_allreduce = dist.get_world_size() > 1
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    keep_full_precision_states(engine, optimizer)
    return engine, optimizer


def gathered_state_dict(engine: Any, model: nn.Module, trained_alone: bool = False) -> dict[str, Tensor]:
    """The model's weights on rank 0's CPU (ZeRO-3 shards them); empty on other ranks.

    Every rank must call it.

    Args:
        trained_alone: leaves out what is frozen, and buffers.
    """
    rank = dist.get_rank()
    state: dict[str, Tensor] = {}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for parameter in model.parameters():
        if trained_alone and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters(parameter, enabled=engine.zero_optimization_stage() == 3):
            if rank == 0:
                weight = parameter.detach().cpu().clone()
                state.update(dict.fromkeys(names[id(parameter)], weight))
    if rank == 0 and not trained_alone:
        buffers = {key: value.detach().cpu() for key, value in model.state_dict().items() if key not in state}
        state.update(buffers)
    return state


def peak_memory() -> int:
    """Bytes: the allocator's peak on a GPU, the process' high-water mark on the CPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
