"""A model of transformers as an ONNX graph, by transformers' own exporter."""

from __future__ import annotations

import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from fangyan.errors import UserError
from fangyan.packages import require

# Of both inputs: a batch of any number of sequences of any length.
AXES = ("batch", "length")
# Sub-words of what is traced. Sizes that differ, and not 1, which torch takes for constant.
_SHAPE = (2, 16)


def check_packages(field: str) -> None:
    """Refuse to go on without the packages that an export needs.

    Args:
        field: of the command that needs them, for the message.

    Raises:
        UserError: naming the first that is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, field, "onnx onnxscript onnxruntime")
    if sys.version_info < (3, 11) or importlib.util.find_spec("transformers.exporters") is None:
        raise UserError(
            f"{field} needs transformers' exporters, which come with its release 5.23 on Python 3.11 or later"
        )


def trace(model: Any, with_segments: bool) -> Any:
    """Return the graph of a model, with axes :data:`AXES` that take any size.

    Its inputs are ``input_ids``, ``attention_mask`` and, if asked for, ``token_type_ids``, (B, T), int64; its
    outputs are those of the model's class, ``logits`` or ``start_logits`` and ``end_logits``.

    Args:
        model: of transformers, in evaluation mode.
        with_segments: whether the graph is told which of a pair of texts a sub-word is of.

    Returns:
        ``transformers.exporters.ExportedModel``.

    Raises:
        UserError: if ONNX has no form of the model.
    """
    from torch.export import Dim
    from transformers.exporters import OnnxConfig, OnnxExporter

    ids = torch.arange(_SHAPE[0] * _SHAPE[1], device=model.device).view(_SHAPE)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if with_segments:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    # Named axes would have to be given the sizes that the model allows; these are found out.
    axes = {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in inputs}
    try:
        with quiet():
            exported = OnnxExporter().export(
                model, {**inputs, "use_cache": False}, OnnxConfig(dynamic_shapes=axes)
            )
    except Exception as error:  # of torch.export, of onnxscript, or of the model's own code
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"--format: {type(model).__name__} cannot be written as an ONNX graph ({reason}); expected a "
            "model that transformers exports"
        ) from None
    _name_axes(exported.program.graph, type(model).__name__)
    return exported


def _name_axes(graph: Any, name: str) -> None:
    """Give the axes of inputs and outputs their names, in place of torch's symbols.

    Raises:
        UserError: if one of them takes one size alone.
    """
    symbols: dict[str, str] = {}
    for value in graph.inputs:
        fixed = [axis for axis, size in zip(AXES, value.shape, strict=True) if isinstance(size, int)]
        if fixed:
            raise UserError(
                f"--format: the graph of {name} takes a {fixed[0]} of one size alone, expected any"
            )
        symbols |= {str(size): axis for axis, size in zip(AXES, value.shape, strict=True)}
    for value in [*graph.inputs, *graph.outputs]:
        for place, size in enumerate(value.shape):
            if not isinstance(size, int):
                value.shape[place] = symbols.get(str(size), str(size))


def save(exported: Any, folder: Path) -> None:
    """Write a graph, and what transformers needs to run it, into a folder."""
    with quiet():
        exported.save_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from writing: what they would have checked, the comparison checks of the result."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
