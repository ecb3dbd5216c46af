"""Steps depend on the seed and the epoch alone, never on the number of ranks."""

from fangyan.data.order import epoch_steps, length_batches, split_step
from hypothesis import given
from hypothesis import strategies as st

lengths_strategy = st.lists(st.integers(1, 60), min_size=1, max_size=80)


@given(
    lengths=lengths_strategy,
    batch_tokens=st.integers(1, 200),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_every_sequence_once_an_epoch(lengths, batch_tokens, seed, epoch):
    steps = epoch_steps(lengths, batch_tokens, seed, epoch)
    assert sorted(i for step in steps for i in step) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in step) <= batch_tokens or len(step) == 1 for step in steps)
    assert steps == epoch_steps(lengths, batch_tokens, seed, epoch)


def test_epochs_and_seeds_differ():
    lengths = [5] * 50
    assert epoch_steps(lengths, 50, 0, 0) != epoch_steps(lengths, 50, 0, 1)
    assert epoch_steps(lengths, 50, 0, 0) != epoch_steps(lengths, 50, 1, 0)


@given(lengths=lengths_strategy, parts=st.integers(1, 8))
def test_shares_are_balanced_and_complete(lengths, parts):
    step = list(range(len(lengths)))
    shares = split_step(step, lengths, parts)
    assert len(shares) == parts
    assert sorted(i for share in shares for i in share) == step
    loads = [sum(lengths[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths)


@given(lengths=lengths_strategy, batch_tokens=st.integers(1, 200))
def test_evaluation_sees_everything_once(lengths, batch_tokens):
    batches = length_batches(lengths, batch_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
