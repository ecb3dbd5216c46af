"""A tagger for languages without a pretrained model: hashed affixes and characters under a BiLSTM over words.

The input are characters, with a mark before each word. Everything about a word (affixes, shape, lower-cased
form) is computed from the ids of its characters in integer arithmetic, so that the tokenizer stays a plain
list of characters and the model needs no dictionary. A word is one position of the LSTM.

Vectors of hashed prefixes, suffixes and shapes are spaCy's (Miranda et al. 2022, arXiv 2212.09255), a
convolution over characters is Ma & Hovy's (2016, arXiv 1603.01354), an LSTM over words Plank et al.'s (2016,
arXiv 1604.05529).

Shapes: B sequences, T characters, N words of the whole batch, W words of the longest sequence, C characters
of all words, L characters of the longest word, F features of a word, M networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, TokenClassifierOutput

from fangyan.models.word_form.configuration import WordFormConfig

# Odd 64-bit constants (signed, as torch has them); products of int64 wrap around, which is what a hash wants.
_MULTIPLIER = -7046029254386353131
_MIXER = -4417276706812531889
_MAX_HASHED_CHARS = 64
_NUM_FIXED_FEATURES = 2  # shape and lower-cased word


@dataclass
class Words:
    """Where the words of a batch are, all sequences one after the other."""

    char_ids_C: Tensor  # ids of the characters that belong to a word, without marks and padding
    word_of_char_C: Tensor  # which of the N words each of them is in
    offset_C: Tensor  # its place in that word
    length_N: Tensor  # characters of each word
    word_at_BT: Tensor  # word of each position
    row_N: Tensor  # sequence of each word
    column_N: Tensor  # place of each word in its sequence
    count_B: Tensor  # words of each sequence


def find_words(input_ids_BT: Tensor, real_BT: Tensor, boundary_id: int) -> Words:
    """A word starts at each mark and at the first position of a sequence."""
    first_BT = real_BT & (real_BT.cumsum(1) == 1)
    start_BT = real_BT & ((input_ids_BT == boundary_id) | first_BT)
    word_at_BT = (start_BT.flatten().cumsum(0) - 1).clamp_min(0).view_as(start_BT)
    count_B = start_BT.sum(1)
    row_N = start_BT.nonzero()[:, 0]
    column_N = torch.arange(len(row_N), device=row_N.device) - (count_B.cumsum(0) - count_B)[row_N]
    in_word_BT = real_BT & (input_ids_BT != boundary_id)
    word_of_char_C = word_at_BT[in_word_BT]
    length_N = torch.bincount(word_of_char_C, minlength=len(row_N))
    before_N = length_N.cumsum(0) - length_N
    offset_C = torch.arange(len(word_of_char_C), device=row_N.device) - before_N[word_of_char_C]
    char_ids_C = input_ids_BT[in_word_BT]
    return Words(char_ids_C, word_of_char_C, offset_C, length_N, word_at_BT, row_N, column_N, count_B)


class WordFeatures(nn.Module):
    """Rows of the shared table for each word: prefixes, suffixes, shape, lower-cased form (the last one)."""

    lower_ids: Tensor
    shape_classes: Tensor
    powers: Tensor
    seeds: Tensor

    def __init__(self, config: WordFormConfig):
        super().__init__()
        self.num_prefixes, self.num_suffixes = config.num_prefixes, config.num_suffixes
        self.hash_rows = config.hash_rows
        self.num_features = config.num_prefixes + config.num_suffixes + _NUM_FIXED_FEATURES
        self.register_buffer("lower_ids", torch.tensor(config.lower_ids))
        self.register_buffer("shape_classes", torch.tensor(config.shape_classes))
        powers = torch.full((_MAX_HASHED_CHARS,), _MULTIPLIER).cumprod(0)
        self.register_buffer("powers", powers)
        self.register_buffer("seeds", torch.arange(1, self.num_features + 1) * _MIXER)

    def forward(self, words: Words) -> Tensor:
        num_words = len(words.length_N)
        lower_C = self.lower_ids[words.char_ids_C]
        prefix_hashes = self._edge_hashes(words, lower_C, words.offset_C, self.num_prefixes)
        from_end_C = words.length_N[words.word_of_char_C] - 1 - words.offset_C
        suffix_hashes = self._edge_hashes(words, lower_C, from_end_C, self.num_suffixes)
        form_N = self._sum_by_word(words, lower_C * self._power(words.offset_C), num_words)
        hashes_NF = torch.stack(
            [*prefix_hashes, *suffix_hashes, self._shape_hash(words, num_words), form_N], 1
        )
        hashes_NF = (hashes_NF + self.seeds) * _MIXER
        hashes_NF = (hashes_NF ^ (hashes_NF >> 31)) * _MULTIPLIER
        return (hashes_NF ^ (hashes_NF >> 29)).remainder(self.hash_rows)

    def _power(self, offset_C: Tensor) -> Tensor:
        return self.powers[offset_C.clamp_max(_MAX_HASHED_CHARS - 1)]

    def _sum_by_word(self, words: Words, value_C: Tensor, num_words: int) -> Tensor:
        return value_C.new_zeros(num_words).index_add_(0, words.word_of_char_C, value_C)

    def _edge_hashes(self, words: Words, lower_C: Tensor, offset_C: Tensor, width: int) -> list[Tensor]:
        """Hashes of the first 1, 2 ... width characters, counted from the start or from the end."""
        edge_NW = lower_C.new_zeros(len(words.length_N), width)
        near_C = offset_C < width
        edge_NW[words.word_of_char_C[near_C], offset_C[near_C]] = lower_C[near_C]
        return list((edge_NW * self.powers[:width]).cumsum(1).unbind(1))

    def _shape_hash(self, words: Words, num_words: int) -> Tensor:
        """Runs of one kind count once: `Abcd` and `Xy` share a shape."""
        class_C = self.shape_classes[words.char_ids_C]
        is_new_C = (words.offset_C == 0) | (class_C != class_C.roll(1))
        rank_C = is_new_C.cumsum(0)
        first_N = rank_C.new_zeros(num_words)
        at_start_C = words.offset_C == 0
        first_N[words.word_of_char_C[at_start_C]] = rank_C[at_start_C]
        rank_C = rank_C - first_N[words.word_of_char_C]
        return self._sum_by_word(words, is_new_C * class_C * self._power(rank_C), num_words)


class CharacterConvolution(nn.Module):
    """One vector per word from windows of three characters, the largest value of each filter."""

    def __init__(self, config: WordFormConfig):
        super().__init__()
        self.max_word_chars = config.max_word_chars
        self.embeddings = nn.Embedding(config.vocab_size, config.char_dim, padding_idx=config.pad_token_id)
        self.pad_token_id = config.pad_token_id
        self.filters = nn.Linear(3 * config.char_dim, config.char_filters)

    def forward(self, words: Words) -> Tensor:
        kept_C = words.offset_C < self.max_word_chars
        longest = max(1, min(int(words.length_N.max()), self.max_word_chars))
        shape = (len(words.length_N), longest + 2)
        ids_NL = words.char_ids_C.new_full(shape, self.pad_token_id)
        ids_NL[words.word_of_char_C[kept_C], words.offset_C[kept_C] + 1] = words.char_ids_C[kept_C]
        chars_NLE = self.embeddings(ids_NL)
        windows = torch.cat([chars_NLE[:, :-2], chars_NLE[:, 1:-1], chars_NLE[:, 2:]], 2)
        # Filters are never negative, so that a zero at the padding changes no maximum.
        present_NL = (ids_NL[:, 1:-1] != self.pad_token_id).unsqueeze(2)
        largest: Tensor = (F.relu(self.filters(windows)) * present_NL).amax(1)
        return largest


class WordVectors(nn.Module):
    """The features of a word side by side, projected."""

    def __init__(self, config: WordFormConfig, num_features: int):
        super().__init__()
        self.table = nn.Embedding(config.hash_rows, config.feature_dim)
        self.characters = CharacterConvolution(config)
        self.word_dropout = nn.Dropout(config.word_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        width = config.feature_dim * num_features + config.char_filters
        self.projection = nn.Linear(width, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, words: Words, features_NF: Tensor) -> Tensor:
        """Return a vector for each word, (N, H)."""
        vectors_NFE = self.table(features_NF)
        # Without its own form a word is what words are that train does not have.
        ones_N11 = vectors_NFE.new_ones(len(vectors_NFE), 1, 1)
        form_N1E = vectors_NFE[:, -1:] * self.word_dropout(ones_N11)
        joined = torch.cat([vectors_NFE[:, :-1].flatten(1), form_N1E.flatten(1), self.characters(words)], 1)
        projected: Tensor = self.norm(self.projection(self.dropout(joined)))
        return projected


class BidirectionalLayer(nn.Module):
    """An LSTM in each direction, without packing: on a CPU that is much faster.

    Padding comes after a sequence's words, also for the backward one, which reads each sequence's own words
    in reverse; so nothing at the padding reaches a word.
    """

    def __init__(self, input_size: int, size: int):
        super().__init__()
        self.forward_lstm = nn.LSTM(input_size, size, batch_first=True)
        self.backward_lstm = nn.LSTM(input_size, size, batch_first=True)

    def forward(self, words_BWE: Tensor, mirror_BW: Tensor) -> Tensor:
        rows_B1 = torch.arange(len(words_BWE), device=words_BWE.device).unsqueeze(1)
        forward_BWH = self.forward_lstm(words_BWE)[0]
        backward_BWH = self.backward_lstm(words_BWE[rows_B1, mirror_BW])[0]
        return torch.cat([forward_BWH, backward_BWH[rows_B1, mirror_BW]], 2)


class ContextEncoder(nn.Module):
    """A BiLSTM over the words of each sequence."""

    def __init__(self, config: WordFormConfig):
        super().__init__()
        self.lstm = BidirectionalLayer(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words_NH: Tensor, words: Words) -> Tensor:
        """Return the state of each word, (N, 2 H)."""
        widest = max(int(words.count_B.max()), 1)
        words_BWH = words_NH.new_zeros(len(words.count_B), widest, words_NH.shape[1])
        words_BWH = words_BWH.index_put((words.row_N, words.column_N), self.dropout(words_NH))
        place_W = torch.arange(widest, device=words_NH.device)
        count_B1 = words.count_B.unsqueeze(1)
        mirror_BW = torch.where(place_W < count_B1, count_B1 - 1 - place_W, place_W)
        states_BWH = self.dropout(self.lstm(words_BWH, mirror_BW))
        states_NH: Tensor = states_BWH[words.row_N, words.column_N]
        return states_NH


class WordNetwork(nn.Module):
    """A whole tagger but for its features and its head."""

    def __init__(self, config: WordFormConfig, num_features: int):
        super().__init__()
        self.vectors = WordVectors(config, num_features)
        self.encoder = ContextEncoder(config)

    def forward(self, words: Words, features_NF: Tensor) -> Tensor:
        """Return the state of each word, (N, 2 H)."""
        states_NH: Tensor = self.encoder(self.vectors(words, features_NF), words)
        return states_NH


class WordFormPreTrainedModel(PreTrainedModel):  # type: ignore[misc]  # transformers is untyped
    """Loads, saves and initializes the models below."""

    config_class = WordFormConfig
    base_model_prefix = "word_form"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                # The chunks are views, which do not carry the mark of a weight that was loaded.
                if "weight_hh" in name and not getattr(parameter, "_is_hf_initialized", False):
                    for gate in parameter.chunk(4):
                        init.orthogonal_(gate)
                elif "weight_ih" in name:
                    init.xavier_uniform_(parameter)
                elif "bias" in name:
                    init.zeros_(parameter)
        elif isinstance(module, WordVectors):
            init.normal_(module.table.weight, std=0.1)
        elif isinstance(module, CharacterConvolution):
            init.normal_(module.embeddings.weight, std=0.3)
            init.zeros_(module.embeddings.weight[module.pad_token_id])


class WordFormModel(WordFormPreTrainedModel):
    """The hidden states of characters, each of which has the state of its word.

    Networks side by side, which start apart, err apart: in training each learns by itself, and elsewhere they
    tag together (deep ensembles, Lakshminarayanan et al. 2017, arXiv 1612.01474). They share a head, which is
    linear: the mean of their logits is that of the mean of their states.
    """

    def __init__(self, config: WordFormConfig):
        super().__init__(config)
        self.features = WordFeatures(config)
        self.networks = nn.ModuleList(
            WordNetwork(config, self.features.num_features) for _ in range(config.num_networks)
        )
        self.output_dim = 2 * config.hidden_size
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        first = self.networks[0]
        assert isinstance(first, WordNetwork)
        return first.vectors.characters.embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """Return the states of characters, (B, T, H); in training those of each network, (M, B, T, H).

        The mask, (B, T), is by default what is no padding.
        """
        if attention_mask is None:
            attention_mask = input_ids != self.config.pad_token_id
        real_BT = attention_mask.bool()
        # A row of nothing but padding has a word too: every weight takes part in every batch.
        is_first = torch.arange(input_ids.shape[1], device=input_ids.device) == 0
        real_BT = real_BT | (is_first & ~real_BT.any(1, keepdim=True))
        words = find_words(input_ids, real_BT, self.config.boundary_token_id)
        features_NF = self.features(words)
        states_MNH = torch.stack([network(words, features_NF) for network in self.networks])
        states = states_MNH if self.training else states_MNH.mean(0)
        # Padding has a state of zeros behind the last word's: to multiply by a mask would be two more passes.
        padded = F.pad(states, (0, 0, 0, 1))
        hidden = padded[..., torch.where(real_BT, words.word_at_BT, states.shape[-2]), :]
        return BaseModelOutput(last_hidden_state=hidden)


class WordFormForTokenClassification(WordFormPreTrainedModel):
    """A word's logits stand at all of its characters, its mark included."""

    def __init__(self, config: WordFormConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.word_form = WordFormModel(config)
        self.classifier = nn.Linear(self.word_form.output_dim, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> TokenClassifierOutput:
        """Return logits, (B, T, C), and with labels, (B, T), their mean cross-entropy, -100 left out.

        In training the logits are those of each network, (M, B, T, C), and the loss is the mean of theirs.
        """
        hidden = self.word_form(input_ids, attention_mask).last_hidden_state
        logits = self.classifier(hidden)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, -2), labels.expand(logits.shape[:-1]).flatten())
        return TokenClassifierOutput(loss=loss, logits=logits)
