"""The files of a model's folder, whoever wrote them: nothing in them runs, and damage is one sentence."""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fangyan.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Weights as transformers looks for them.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Name the file that a library fails over: foreign content makes it raise whatever it does not expect.

    Raises:
        ValueError: in one sentence, in place of any error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
            raise UserError(
                f"{name}: the memory of this machine does not hold it ({' '.join(str(error).split())[:200]})"
            ) from None
        raise ValueError(f"{name}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs code of its own, which fangyan never runs; expected a model that transformers has"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors, and was not read; expected safetensors, or tensors alone"
    if isinstance(error, OSError | ValueError):
        return text[:300]
    return f"it cannot be read ({type(error).__name__}: {text[:200]}); expected it as transformers writes it"


def read_config(path: str | Path, **fields: Any) -> Any:
    """Return a model's configuration.

    Args:
        path: a folder, or a name on the hub.
        fields: of the configuration, in place of its own.

    Raises:
        ValueError: if it cannot be read, or needs code of its own.
    """
    from transformers import AutoConfig

    import fangyan.models.word_form  # noqa: F401  (registers its classes)

    with reading("config.json"):
        # Left to itself, transformers asks on standard input whether to run it: a line of data would answer.
        return AutoConfig.from_pretrained(path, trust_remote_code=False, **fields)


def read_tokenizer(path: str | Path, **options: Any) -> Any:
    """Return a model's tokenizer; see :func:`read_config`.

    Args:
        path: a folder, or a name on the hub.
        options: of the tokenizer.
    """
    from transformers import AutoTokenizer

    with reading("its tokenizer's files (tokenizer.json, tokenizer_config.json)"):
        return AutoTokenizer.from_pretrained(path, use_fast=True, trust_remote_code=False, **options)


def read_weights(auto_model: Any, path: str | Path, **options: Any) -> tuple[Any, list[str]]:
    """Return a model, and the names of its weights that are absent or do not fit its configuration.

    Args:
        auto_model: class of transformers.
        path: a folder, or a name on the hub.
        options: for transformers.

    Raises:
        ValueError: if its files cannot be read.
    """
    with reading(weights_name(path)):
        model, report = auto_model.from_pretrained(
            path,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    return model, [*(key for key, *_ in report["mismatched_keys"]), *report["missing_keys"]]


def weights_name(path: str | Path) -> str:
    """Return the name of a folder's weights, for messages."""
    return next((name for name in _WEIGHTS if (Path(path) / name).is_file()), "its weights")


def stored_tensors(path: str | Path, names: Collection[str]) -> dict[str, Tensor]:
    """Return those of some tensors that a model's files have.

    Args:
        path: a folder, or a name on the hub.
        names: of the tensors.

    Raises:
        ValueError: if a file cannot be read.
    """
    import torch
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    with reading(weights_name(path)):
        for file in weight_files(path):
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as content:
                    found |= {name: content.get_tensor(name) for name in set(names) & set(content.keys())}
            else:
                tensors = torch.load(file, map_location="cpu", weights_only=True)
                found |= {name: tensors[name] for name in names if name in tensors}
    return found


def weight_files(path: str | Path) -> list[Path]:
    """Return the files of a model's weights, which transformers has found before: of a folder, or the hub's.

    Args:
        path: a folder, or a name on the hub.
    """
    from transformers.utils.hub import cached_file

    def find(name: str) -> Path | None:
        found: str | None = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    for name in _WEIGHTS:
        file = find(name)
        if file is None:
            continue
        if file.suffix != ".json":
            return [file]
        parts = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
        return [part for part in map(find, parts) if part is not None]
    return []
