"""Parameter-efficient adaptation: PEFT's adapters, LoRA's layers computed by fangyan's kernels.

PEFT makes, loads and saves every adapter, so its files go both ways. A LoRA layer of PEFT's is then told to
compute itself by :func:`fangyan_kernels.lora_linear`; whatever else it can do (several adapters, DoRA, merged
weights) stays PEFT's.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
import torch.distributed as dist
from fangyan_kernels import lora_linear
from fangyan_kernels.lora_linear import base_weights
from torch import Tensor, nn

import fangyan.accelerator  # noqa: F401  (PEFT imports DeepSpeed)
from fangyan.errors import UserError
from fangyan.recipe import Adapt

Kernels = Literal["auto", "reference"]
_PROMPTS = ("prefix_tuning", "prompt_tuning")


def adapt(
    model: Any, settings: Adapt, kind: str, head: str | None, total_steps: int, kernels: Kernels
) -> Any:
    """Freezes a transformers model and puts the recipe's adapter beside its weights.

    Args:
        model: the model, in float32 or already quantized (:func:`quantize`).
        kind: PEFT's name of the task, ``TOKEN_CLS`` or ``CAUSAL_LM``.
        head: name of a new head, which is trained whole; None where the model's own stays frozen.
        total_steps: optimizer steps of the run, for AdaLoRA's schedule.
        kernels: ``reference`` leaves LoRA's layers to PEFT.

    Returns:
        PEFT's model, or ``model`` itself for method ``full``.

    Raises:
        UserError: if the targets name no layer.
    """
    if settings.method == "full":
        return model
    import peft

    with warnings.catch_warnings():
        # PEFT asks transformers for an attribute by a name that transformers would rather forget.
        warnings.simplefilter("ignore", FutureWarning)
        if settings.init is not None:
            adapted = _begun(model, settings, settings.init)
        else:
            config = _config(settings, kind, head, _targets(model, settings, head), total_steps)
            adapted = peft.get_peft_model(model, config)
    if kernels == "auto":
        fuse(adapted)
    return adapted


def _begun(model: Any, settings: Adapt, folder: str) -> Any:
    """The model with an adapter that there is already."""
    import peft
    from safetensors import SafetensorError

    try:
        config = peft.PeftConfig.from_pretrained(folder)
        adapted = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"adapt.init: no adapter for this model can be loaded from {folder!r}: {reason}"
        ) from None
    kind = "lora" if settings.method == "dora" else settings.method
    if config.peft_type.value.lower() != kind:
        raise UserError(
            f"adapt.method: {settings.method}, but {folder} holds an adapter of type {config.peft_type.value}"
        )
    return adapted


def _config(settings: Adapt, kind: str, head: str | None, targets: list[str], total_steps: int) -> Any:
    import peft

    common: dict[str, Any] = {"task_type": kind}
    if head is not None and settings.method not in _PROMPTS:
        common["modules_to_save"] = [head]
    low_rank = {
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "target_modules": targets,
    }
    if settings.method in ("lora", "dora"):
        dora = settings.method == "dora"
        return peft.LoraConfig(r=settings.rank, use_dora=dora, **low_rank, **common)
    if settings.method == "adalora":
        # A tenth of the steps to warm up, the last third at the final rank (Zhang et al. 2023, 2303.10512).
        return peft.AdaLoraConfig(
            init_r=settings.rank + settings.rank // 2,
            target_r=settings.rank,
            tinit=total_steps // 10,
            tfinal=total_steps // 3,
            deltaT=max(1, total_steps // 100),
            total_step=total_steps,
            **low_rank,
            **common,
        )
    if settings.method == "ia3":
        return peft.IA3Config(target_modules=targets, feedforward_modules=[], **common)
    prompt = peft.PrefixTuningConfig if settings.method == "prefix_tuning" else peft.PromptTuningConfig
    return prompt(num_virtual_tokens=settings.virtual_tokens, **common)


def _targets(model: Any, settings: Adapt, head: str | None) -> list[str]:
    """Full names of the linear layers that get an adapter: by type, never the head."""
    output = model.get_output_embeddings()
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != head and module is not output
    ]
    if settings.targets == "all-linear":
        return linears
    chosen = [name for name in linears if any(_ends(name, target) for target in settings.targets)]
    for target in settings.targets:
        if not any(_ends(name, target) for name in linears):
            endings = sorted({name.rpartition(".")[2] for name in linears})
            raise UserError(
                f"adapt.targets: {type(model).__name__} has no linear layer {target!r}, expected all-linear "
                f"or some of {', '.join(endings)}"
            )
    return chosen


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def quantize(model: Any, skip: str | None, dtype: torch.dtype) -> None:
    """Replaces every linear layer but the output's by a 4-bit one (NF4, nested scales), by type.

    Args:
        skip: name of the head, which stays as it is.
        dtype: of the activations. Packed weights are stored as bytes, which no cast of the model touches.
    """
    import bitsandbytes as bnb

    output = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or name == skip or module is output:
            continue
        packed = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=dtype,
            quant_type="nf4",
            quant_storage=torch.uint8,
            device="meta",
        )
        weight = bnb.nn.Params4bit(module.weight.data, quant_type="nf4", quant_storage=torch.uint8)
        packed.weight = weight.to(module.weight.device)
        packed.weight.module = packed
        packed.bias = module.bias
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, packed)
    model.is_loaded_in_4bit = True  # how PEFT knows


def dequantize(model: Any) -> None:
    """Replaces every 4-bit layer by a plain one of the same values."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if type(module) is bnb.nn.Linear4bit:
            plain = nn.Linear(module.in_features, module.out_features, device="meta")
            plain.weight = nn.Parameter(base_weights.dequantize(module.weight), requires_grad=False)
            plain.bias = module.bias
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, plain)
    model.is_loaded_in_4bit = False


def fuse(model: nn.Module) -> int:
    """Has every plain LoRA layer of PEFT's computed by the kernels; gives their number."""
    from peft.tuners import lora

    kinds: dict[type[nn.Module], type[nn.Module]] = {lora.Linear: _fused(lora.Linear)}
    if hasattr(lora, "Linear4bit"):
        kinds[lora.Linear4bit] = _fused(lora.Linear4bit)
    count = 0
    for module in model.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]
            count += 1
    return count


def _fused(kind: Any) -> Any:
    """A subclass of one of PEFT's LoRA layers whose forward is the op, wherever it is a plain adapter's."""

    class Fused(kind):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            name = _plain_adapter(self)
            if name is None or args or kwargs:
                return super().forward(x, *args, **kwargs)
            base = self.get_base_layer()
            dropout = self.lora_dropout[name]
            # Weights are read from their modules, inside the engine's forward: ZeRO-3 gathers them so.
            return lora_linear(
                x,
                base.weight,
                self.lora_A[name].weight,
                self.lora_B[name].weight,
                bias=base.bias,
                scaling=self.scaling[name],
                dropout=dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0,
            )

    Fused.__name__ = Fused.__qualname__ = kind.__name__
    return Fused


def _plain_adapter(layer: Any) -> str | None:
    """The one active adapter of a layer that does nothing but LoRA, else None."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(active) != 1:
        return None
    name: str = active[0]
    special = name in layer.lora_variant or layer.lora_bias[name] or layer.fan_in_fan_out
    return None if special else name


def check_moved(model: nn.Module) -> None:
    """After some steps: a LoRA B has left the zero that it starts from. Every rank must call it.

    Gradient checkpointing trains nothing, silently, where no input of a checkpointed layer has a gradient.

    Raises:
        RuntimeError: if all are still zero, which no recipe can mend.
    """
    adapters = [p for name, p in model.named_parameters() if "lora_B" in name and p.requires_grad]
    if not adapters:
        return
    # ZeRO-3 leaves a rank its shard of a parameter.
    shards = [getattr(p, "ds_tensor", p).detach() for p in adapters]
    moved = torch.stack([shard.any() for shard in shards]).any().float()
    dist.all_reduce(moved, op=dist.ReduceOp.MAX)
    if not moved:
        raise RuntimeError("no adapter has moved after the first steps: their gradients do not arrive")
