"""Arrays of millions of numbers: the same values as by plain Python, in less memory."""

import random

import numpy as np
import pytest
from fangyan.data import arrays
from fangyan.device import memory_in_use, peak_memory, reset_peak_memory
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 200), st.integers(0, 9))
def test_shuffled_is_pythons_shuffle(count, seed):
    expected = list(range(count))
    random.Random(seed).shuffle(expected)
    assert arrays.shuffled(count, seed).tolist() == expected


@given(st.lists(st.integers(0, 50)))
def test_differences(lengths):
    assert arrays.differences(np.cumsum(np.array(lengths, dtype=np.int64))).tolist() == lengths


@given(st.lists(st.integers(0, 2**31 - 1)), st.integers(1, 7))
def test_cumulative(values, piece):
    order = arrays.shuffled(len(values), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_PIECE", piece)
        found = arrays.cumulative(np.array(values, dtype=np.int32), order)
    assert found.tolist() == np.cumsum([values[i] for i in order], dtype=np.int64).tolist()


@pytest.mark.slow
def test_arrays_take_little_more_than_they_return():
    """In bytes per element, at the peak."""
    count = 3_000_000
    values, order = np.full(count, 9, dtype=np.int32), np.arange(count, dtype=np.uint32)
    ends = np.arange(count, dtype=np.int64)
    limits = {
        12.5: lambda: arrays.shuffled(count, 0),
        4.5: lambda: arrays.differences(ends),
        14.0: lambda: arrays.cumulative(values, order),
    }
    for limit, make in limits.items():
        reset_peak_memory()
        before = memory_in_use()
        kept = make()
        assert (peak_memory() - before) / count < limit
        assert len(kept) == count
