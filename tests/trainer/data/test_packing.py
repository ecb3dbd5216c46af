"""Packing loses nothing, and nothing sees across a boundary."""

import torch
from fangyan.data.encode import IGNORE, Window
from fangyan.data.packing import block_mask, boundaries, collate, mask_tokens
from hypothesis import given
from hypothesis import strategies as st

PAD = 0


def make_windows(lengths):
    """Windows whose ids are all different, so that each can be found again."""
    windows, next_id = [], 1
    for length in lengths:
        ids = list(range(next_id, next_id + length))
        windows.append(Window(ids, list(range(length)), 0, (0, length), [i % 7 for i in ids]))
        next_id += length
    return windows


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=40), width=st.sampled_from([None, 0, 16, 64])
)
def test_every_subword_once_and_in_order(lengths, width):
    windows = make_windows(lengths)
    batch = collate(windows, PAD, width)
    for window, (row, column), length in zip(windows, batch.places, batch.lengths, strict=True):
        span = slice(column, column + length)
        assert batch.input_ids[row, span].tolist() == window.input_ids
        assert batch.targets[row, span].tolist() == window.targets
        assert batch.position_ids[row, span].tolist() == list(range(length))
        assert len(set(batch.sequence_ids[row, span].tolist())) == 1
    used = batch.sequence_ids > 0
    assert int(used.sum()) == sum(lengths)
    assert (batch.input_ids[~used] == PAD).all()
    assert (batch.targets[~used] == IGNORE).all()
    most = -(-sum(lengths) // 64) * 64 if width is None else max([width, *lengths])
    assert batch.input_ids.shape[1] <= most


def test_short_sentences_leave_little_room():
    """The lengths of HKCanCor: about 12 characters and two special tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.rand(160, generator=generator) ** 2 * 40 + 3).int().tolist()
    batch = collate(make_windows(lengths), PAD)
    assert sum(lengths) / batch.input_ids.numel() > 0.95


def test_nothing_to_do_is_a_row_without_labels():
    for width in (None, 0, 64):
        batch = collate([], PAD, width)
        assert set(batch.input_ids.flatten().tolist()) == {PAD}
        assert set(batch.targets.flatten().tolist()) == {IGNORE}


def test_block_mask():
    sequence_ids = torch.tensor([[1, 1, 2, 0]])
    assert block_mask(sequence_ids, causal=False)[0, 0].int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]
    assert block_mask(sequence_ids, causal=True)[0, 0].int().tolist()[0] == [1, 0, 0, 0]


def test_boundaries_of_one_row():
    offsets, longest = boundaries(collate(make_windows([3, 1, 5]), PAD, None).sequence_ids)
    assert offsets.tolist() == [0, 3, 4, 9, 64]  # and the row's empty end
    assert offsets.dtype == torch.int32
    assert longest == 55


def test_masking_hides_labelled_subwords_alone():
    batch = collate(make_windows([40] * 50), PAD)
    batch.targets[:, ::2] = IGNORE
    torch.manual_seed(0)
    masked = mask_tokens(batch, 0.3, mask_id=-1)
    hidden = masked.input_ids == -1
    labelled = batch.targets != IGNORE
    assert not (hidden & ~labelled).any()
    assert 0.2 < hidden.sum() / labelled.sum() < 0.4
    assert torch.equal(masked.input_ids[~hidden], batch.input_ids[~hidden])
    assert masked.targets is batch.targets
