"""Steps depend on the seed and the epoch alone, never on the number of ranks."""

from fangyan.data.batching import bucket_by_length, micro_batches, shuffled_batches
from hypothesis import given
from hypothesis import strategies as st

lengths_strategy = st.lists(st.integers(1, 60), min_size=1, max_size=80)


@given(
    lengths=lengths_strategy,
    batch_tokens=st.integers(1, 200),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_shuffled_batches_have_every_sequence_once_per_epoch(lengths, batch_tokens, seed, epoch):
    batches = shuffled_batches(lengths, batch_tokens, seed, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in batch) <= batch_tokens or len(batch) == 1 for batch in batches)
    assert list(batches) == list(shuffled_batches(lengths, batch_tokens, seed, epoch))


def test_shuffled_batches_of_other_epochs_and_seeds_differ():
    lengths = [5] * 50
    batches = [list(shuffled_batches(lengths, 50, seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert batches[0] != batches[1]
    assert batches[0] != batches[2]


@given(lengths=lengths_strategy, count=st.integers(1, 8))
def test_micro_batches_are_balanced_and_complete(lengths, count):
    batch = list(range(len(lengths)))
    members = micro_batches(batch, lengths, count)
    assert len(members) == count
    assert sorted(i for part in members for i in part) == batch
    loads = [sum(lengths[i] for i in part) for part in members]
    assert max(loads) - min(loads) <= max(lengths)


@given(lengths=lengths_strategy, batch_tokens=st.integers(1, 200))
def test_bucket_by_length_has_every_sequence_once(lengths, batch_tokens):
    batches = bucket_by_length(lengths, batch_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in batch) <= batch_tokens or len(batch) == 1 for batch in batches)
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(in_order)
