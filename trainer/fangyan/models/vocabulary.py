"""New sub-words: for a tokenizer, and for the embeddings of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, pre_tokenizers
from torch import Tensor, nn

from fangyan.data.vocabulary import Character


def extend_vocabulary(model: Any, backend: Any, characters: Sequence[Character]) -> list[int]:
    """Add characters to a tokenizer and to the embeddings of its model, whose tied weights stay tied.

    A character begins as the mean of the sub-words that stood for it, an unknown one as the mean of all
    (Hewitt 2021, *Initializing New Word Embeddings for Pretrained Language Models*).

    Args:
        model: of transformers; changed in place, its ``new_tokens`` names the ids.
        backend: its fast tokenizer; changed in place.
        characters: to add.

    Returns:
        The ids of the characters.
    """
    known = len(backend)
    _add_tokens(backend, [character.text for character in characters])
    ids = backend.convert_tokens_to_ids([character.text for character in characters])
    resize_embeddings(model, len(backend))
    with torch.no_grad():
        for table in _tables(model):
            rows = [
                table[:known].mean(0) if character.unknown else table[list(character.pieces)].mean(0)
                for character in characters
            ]
            table[ids] = torch.stack(rows)
    model.new_tokens = ids
    return list(ids)


def _add_tokens(backend: Any, texts: Sequence[str]) -> None:
    # As they are written: a normalizer such as BERT's would put spaces around Chinese characters.
    backend.add_tokens([AddedToken(text, normalized=False) for text in texts])
    # What follows an added token is no new word.
    metaspace = backend.backend_tokenizer.pre_tokenizer
    if isinstance(metaspace, pre_tokenizers.Metaspace) and metaspace.prepend_scheme == "always":
        metaspace.prepend_scheme = "first"
        backend.backend_tokenizer.pre_tokenizer = metaspace


def resize_embeddings(model: Any, size: int) -> None:
    """Give the embeddings of a model rows for ``size`` ids, if they have fewer."""
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)


def _tables(model: Any) -> list[Tensor]:
    """Return every tensor that has a row per sub-word, once."""
    head = model.get_output_embeddings()
    tables = {id(model.get_input_embeddings().weight): model.get_input_embeddings().weight}
    if head is not None:
        tables[id(head.weight)] = head.weight
        if getattr(head, "bias", None) is not None:
            tables[id(head.bias)] = head.bias
    return list(tables.values())


def trainable_tokens(model: Any) -> dict[str, Any]:
    """Return PEFT's argument for the new rows of embeddings, which learn beside an adapter."""
    ids = getattr(model, "new_tokens", None)
    if not ids:
        return {}
    modules = [model.get_input_embeddings()]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not modules[0].weight:
        modules.append(head)
    names = {module: name for name, module in model.named_modules()}
    return {"trainable_token_indices": {names[module]: ids for module in modules}}


def use_merged_tokens(model: Any) -> None:
    """Let the heads among PEFT's layers of new tokens compute by their own forward, with the new rows.

    PEFT multiplies by the weights itself, past a bias and past the loss that a head computes.
    """
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    for module in model.modules():
        if type(module) is TrainableTokensLayer and isinstance(module.get_base_layer(), nn.Linear):
            module.__class__ = _merged_layer(TrainableTokensLayer)


def _merged_layer(base: type[nn.Module]) -> type[nn.Module]:
    class MergedTokens(base):  # type: ignore[misc, valid-type]
        """PEFT's layer around a head."""

        def forward_adapters(self, x: Tensor, active_adapters: list[str], *args: Any, **kwargs: Any) -> Any:
            """Return the head's output with the new rows in its weight."""
            if self.disable_adapters or not active_adapters or self.merged:
                return super().forward_adapters(x, active_adapters, *args, **kwargs)
            weight = self.get_merged_weights(active_adapters)
            return torch.func.functional_call(self.get_base_layer(), {"weight": weight}, (x,))

    return MergedTokens
