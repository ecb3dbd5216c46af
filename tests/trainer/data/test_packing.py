"""Packing loses nothing."""

import torch
from fangyan.data.packing import collate, mask_tokens
from fangyan.data.tokenization import IGNORE_INDEX, TokenizedSequence
from hypothesis import given
from hypothesis import strategies as st

PAD = 0


def make_sequences(lengths):
    """Sequences whose ids are all different, so that each can be found again."""
    sequences, next_id = [], 1
    for i, length in enumerate(lengths):
        ids = list(range(next_id, next_id + length))
        sequences.append(TokenizedSequence(ids, [i % 7 for i in ids], i))
        next_id += length
    return sequences


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=40), width=st.sampled_from([None, 0, 16, 64])
)
def test_collate_keeps_every_subword_once_and_in_order(lengths, width):
    sequences = make_sequences(lengths)
    batch = collate(sequences, PAD, width)
    assert batch.sequences == sequences
    for sequence, (row, column), length in zip(sequences, batch.offsets, lengths, strict=True):
        span = slice(column, column + length)
        assert batch.input_ids[row, span].tolist() == sequence.input_ids
        assert batch.labels[row, span].tolist() == sequence.labels
        assert batch.position_ids[row, span].tolist() == list(range(length))
        assert len(set(batch.sequence_ids[row, span].tolist())) == 1
    used = batch.sequence_ids > 0
    assert int(used.sum()) == sum(lengths)
    assert (batch.input_ids[~used] == PAD).all()
    assert (batch.labels[~used] == IGNORE_INDEX).all()
    assert batch.num_valid == int((batch.labels != IGNORE_INDEX).sum()) == sum(lengths)
    most = -(-sum(lengths) // 64) * 64 if width is None else max([width, *lengths])
    assert batch.input_ids.shape[1] <= most


def test_collate_leaves_little_room_beside_short_sentences():
    """The lengths of HKCanCor: about 12 characters and two special tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.rand(160, generator=generator) ** 2 * 40 + 3).int().tolist()
    batch = collate(make_sequences(lengths), PAD)
    assert sum(lengths) / batch.input_ids.numel() > 0.95


def test_collate_without_sequences_is_a_row_without_labels():
    for width in (None, 0, 64):
        batch = collate([], PAD, width)
        assert set(batch.input_ids.flatten().tolist()) == {PAD}
        assert set(batch.labels.flatten().tolist()) == {IGNORE_INDEX}
        assert batch.num_valid == 0


def test_mask_tokens_hides_labelled_subwords_alone():
    batch = collate(make_sequences([40] * 50), PAD)
    batch.labels[:, ::2] = IGNORE_INDEX
    torch.manual_seed(0)
    masked = mask_tokens(batch, 0.3, mask_id=-1)
    hidden = masked.input_ids == -1
    labelled = batch.labels != IGNORE_INDEX
    assert not (hidden & ~labelled).any()
    assert 0.2 < hidden.sum() / labelled.sum() < 0.4
    assert torch.equal(masked.input_ids[~hidden], batch.input_ids[~hidden])
    assert masked.labels is batch.labels
