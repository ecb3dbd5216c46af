"""Tokens that an adapter puts before every sequence."""

import pytest
from fangyan.errors import UserError
from model_families import BY_NAME
from tiny_runs import workload


def prefixed(folder, count):
    adaptation = {"name": "prefix_tuning", "virtual_tokens": count}
    return workload(BY_NAME["BERT"], folder, adaptation=adaptation, train={"packing": False})


def test_virtual_tokens_take_the_places_of_sub_words(tmp_path):
    """A sequence that fills the model's positions has to leave room for them."""
    run = prefixed(tmp_path, 448)
    assert run.max_length == 64
    batch = run.micro_batch(list(range(len(run.sequences))), "0/0")
    assert max(map(len, (sequence.input_ids for sequence in batch.sequences))) == 40
    run.model.train().loss(batch, 1.0).backward()
    sentence = "adaptation.virtual_tokens: 449, but the model takes 512 .* expected 448 at most"
    with pytest.raises(UserError, match=sentence):
        prefixed(tmp_path, 449)
