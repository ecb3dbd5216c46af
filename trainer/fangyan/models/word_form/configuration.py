"""Sizes of a tagger that starts from nothing, and what it knows of characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

_SMALL = {"hash_rows": 8192, "feature_dim": 64, "char_dim": 32, "char_filters": 64, "hidden_size": 128}
# Trained on 400 to 2,300 sentences: about 0.2, 0.9 and 3.5 million parameters.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hash_rows": 4096, "feature_dim": 32, "char_dim": 16, "char_filters": 32, "hidden_size": 64},
    "small": _SMALL,
    # Voting, each may overfit a little more. What it is worth: bench/scratch_peers.py.
    "base": {**_SMALL, "num_networks": 4, "hidden_dropout_prob": 0.2},
}


class WordFormConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is untyped
    """The configuration of :class:`fangyan.models.word_form.modeling.WordFormModel`.

    Args:
        vocab_size: characters, with the special tokens.
        lower_ids: id of the lower-cased form of each character.
        shape_classes: kind of each character; see :func:`fangyan.models.word_form.alphabet.shape_class`.
        boundary_token_id: of the mark before each word.
        pad_token_id: of the padding.
        num_prefixes: the longest prefix that has a vector of its own.
        num_suffixes: the longest suffix.
        hash_rows: of the table that affixes, shapes and words share.
        feature_dim: width of the table.
        char_dim: width of a character's embedding.
        char_filters: of the convolution over a word's characters.
        max_word_chars: characters of a word that the convolution reads.
        hidden_size: of the LSTM in each direction.
        num_networks: side by side, each a tagger by itself.
        word_dropout: how often a word has to be known by its other features.
        hidden_dropout_prob: elsewhere.
        max_position_embeddings: characters of a sentence; the model itself has no limit.
    """

    model_type = "word_form"

    def __init__(
        self,
        vocab_size: int = 4,
        lower_ids: Sequence[int] | None = None,
        shape_classes: Sequence[int] | None = None,
        boundary_token_id: int = 3,
        pad_token_id: int = 0,
        num_prefixes: int = 3,
        num_suffixes: int = 4,
        hash_rows: int = 8192,
        feature_dim: int = 64,
        char_dim: int = 32,
        char_filters: int = 64,
        max_word_chars: int = 32,
        hidden_size: int = 128,
        num_networks: int = 1,
        word_dropout: float = 0.3,
        hidden_dropout_prob: float = 0.3,
        max_position_embeddings: int = 8192,
        **kwargs: Any,
    ):
        super().__init__(pad_token_id=pad_token_id, **kwargs)
        self.vocab_size = vocab_size
        self.lower_ids = list(lower_ids or range(vocab_size))
        self.shape_classes = list(shape_classes or [1] * vocab_size)
        self.boundary_token_id = boundary_token_id
        self.num_prefixes = num_prefixes
        self.num_suffixes = num_suffixes
        self.hash_rows = hash_rows
        self.feature_dim = feature_dim
        self.char_dim = char_dim
        self.char_filters = char_filters
        self.max_word_chars = max_word_chars
        self.hidden_size = hidden_size
        self.num_networks = num_networks
        self.word_dropout = word_dropout
        self.hidden_dropout_prob = hidden_dropout_prob
        self.max_position_embeddings = max_position_embeddings
