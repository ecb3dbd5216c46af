"""The DeepSpeed engine of a recipe: configuration, model and optimizer in one."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from fangyan_kernels.capability import bfloat16_missing
from torch import Tensor, nn
from transformers import get_scheduler

from fangyan.device import device, on_gpu
from fangyan.errors import UserError
from fangyan.optimizers.param_groups import parameter_groups
from fangyan.optimizers.states import keep_full_precision_states
from fangyan.recipe import Recipe, parse_recipe
from fangyan.training.checkpoint_files import SafeCheckpointEngine
from fangyan.training.config import EngineConfig
from fangyan.training.half_precision_step import replace_step


def choose_precision(recipe: Recipe) -> Recipe:
    """Return the recipe with ``engine.precision: auto`` replaced by what this machine does best."""
    if recipe.engine.precision != "auto":
        return recipe
    content = recipe.model_dump(mode="json")
    half = "fp16" if bfloat16_missing(device()) else "bf16"
    content["engine"]["precision"] = half if on_gpu() else "fp32"
    return parse_recipe(content)


def check_precision(config: EngineConfig) -> None:
    """Refuse a precision before anything is loaded: PyTorch would emulate what the GPU does not have.

    Raises:
        UserError: for bf16 on a GPU that has none, and fp16 on a processor without.
    """
    reason = bfloat16_missing(device()) if config.precision == "bf16" else None
    if reason:
        raise UserError(f"engine.precision is bf16, which {reason}; expected fp16 or fp32")
    if config.precision == "fp16" and not on_gpu() and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise UserError("engine.precision is fp16, which this processor does not have; expected fp32")


def activation_dtype(config: EngineConfig) -> torch.dtype:
    """Return the dtype of forward and backward."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision, torch.float32)


def slow_precision(config: EngineConfig) -> list[str]:
    """Return a message where bf16 takes longer than fp32: on processors whose bf16 products are emulated."""
    if on_gpu() or config.precision != "bf16" or has_fast_bfloat16():
        return []
    return [
        "engine.precision: bf16 is slower than fp32 on this processor, which has neither AVX512-BF16 nor AMX"
    ]


def has_fast_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 itself, faster than float32; others emulate it.

    The Cantonese recipe's step on one processor, over its step in float32: 0.55 of the time by its own
    products, 2.6 times with oneDNN held to AVX-512 (``ONEDNN_MAX_CPU_ISA=AVX512_CORE``), 25 times to AVX2.
    """
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM's


def deepspeed_config(recipe: Recipe, trained: int, accumulation: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration; it accepts unknown top-level keys silently, so none is free text.

    Args:
        recipe: of the run.
        trained: parameters that the optimizer steps. DeepSpeed's buffer for gradients is no larger: by
            default it takes a gigabyte of a GPU, whatever the model.
        accumulation: micro-batches per rank and step.
    """
    zero: dict[str, Any] = {"stage": recipe.engine.zero_stage, "reduce_bucket_size": gradient_buffer(trained)}
    if recipe.engine.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        # A batch is what the trainer passes: DeepSpeed needs the number of micro-batches alone.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": recipe.train.gradient_clipping,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # ours step offloaded partitions as fast
        "bf16": {"enabled": recipe.engine.precision == "bf16"},
        "fp16": {"enabled": recipe.engine.precision == "fp16"},  # with a dynamic loss scale, from 2^16
        "steps_per_print": sys.maxsize,
    }


def gradient_buffer(trained: int) -> int:
    """Return the elements of DeepSpeed's buffer for gradients; 5e8 is its default."""
    return min(trained, 500_000_000)


def build_engine(
    recipe: Recipe,
    model: nn.Module,
    total_steps: int,
    accumulation: int | None = None,
    new: Collection[int] = (),
) -> tuple[Any, torch.optim.Optimizer]:
    """Wrap the model in a DeepSpeed engine; return it with the optimizer inside it.

    Args:
        recipe: of the run.
        model: whose trainable parameters are stepped.
        total_steps: optimizer steps of the whole run, for the learning rate's schedule.
        accumulation: micro-batches per rank and step, by default the recipe's.
        new: ``id`` of parameters that the run adds to the model, which an objective may tell from others.
    """
    import deepspeed  # after fangyan.device

    on_cpu = not on_gpu() or recipe.engine.offload == "optimizer"
    groups = parameter_groups(model, recipe.optimizer, new if recipe.objective.holds_weights else ())
    optimizer = recipe.optimizer.build(groups, total_steps, on_cpu)
    name = {"constant": "constant_with_warmup"}.get(recipe.schedule.decay, recipe.schedule.decay)
    schedule = get_scheduler(name, optimizer, round(recipe.schedule.warmup * total_steps), total_steps)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    config = deepspeed_config(recipe, trained, accumulation or recipe.train.gradient_accumulation_steps)
    if recipe.engine.zero_stage == 3:
        _shard(model, config, activation_dtype(recipe.engine))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=schedule, config=config)
    engine.checkpoint_engine = SafeCheckpointEngine()
    # Scripts beside the checkpoints, which would unpickle them.
    engine._copy_recovery_script = lambda _: None
    if recipe.engine.zero_stage == 0:
        # In 16 bits DeepSpeed has taken a step on zero gradients: at a learning rate of 0 it moved no weight,
        # and forgetting its states takes its count of steps back to 0.
        optimizer.state.clear()
        replace_step(engine.optimizer, optimizer)
        # Alone, DeepSpeed would still lay all gradients side by side, reduce them and copy them back.
        engine.enable_backward_allreduce = dist.get_world_size() > 1
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    keep_full_precision_states(engine, optimizer, recipe.optimizer)
    return engine, optimizer


def _shard(model: nn.Module, config: dict[str, Any], dtype: torch.dtype) -> None:
    """Leave each rank its part of a model for ZeRO-3, weight by weight.

    ``deepspeed.initialize`` does this after it has moved the whole model to the GPU, and written the first
    rank's weights over all of another's, which had been mapped files.
    """
    import deepspeed

    for buffer in model.buffers():
        buffer.data = buffer.data.to(device())
    parameters: list[Any] = list(model.parameters())
    for parameter in parameters:
        weight = parameter.data.to(dtype) if parameter.is_floating_point() else parameter.data
        # Pages of a mapped file that are written over would stay until the file's last weight is let go.
        parameter.data = weight if dist.get_rank() == 0 else torch.empty_like(weight)
        del weight
        if parameter is parameters[0]:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=config)
        else:
            parameters[0].convert_to_zero_parameters([parameter])


def backward(engine: Any, loss: Tensor) -> None:
    """Run the backward of a micro-batch.

    DeepSpeed 0.19.8 divides gradients by fp16's loss scale at every stage, and scales the loss from 1 on.
    """
    if engine.fp16_enabled() and engine.zero_optimization_stage() == 0:
        loss = loss * engine.optimizer.loss_scale
    engine.backward(loss)


def release(engine: Any) -> None:
    """Let an engine and its model go, for the next run of this process.

    DeepSpeed 0.19.8 keeps both at ZeRO stage 3, in a list and in the cache of a method.
    """
    engine.destroy()
    if engine.zero_optimization_stage() == 3:
        from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

        parameter_offload.FWD_MODULE_STACK.clear()
        for method in vars(partitioned_param_coordinator.PartitionedParameterCoordinator).values():
            for cell in getattr(method, "__closure__", None) or ():  # the cache is within another decorator
                if hasattr(cell.cell_contents, "cache_clear"):
                    cell.cell_contents.cache_clear()
