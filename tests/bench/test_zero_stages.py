"""What ``bench/zero_stages.py`` counts, on two real ranks."""

import pytest

import zero_stages


def test_formulas_are_those_of_the_paper():
    assert zero_stages.formulas("1", 2) == (4 + 4 + 8 / 2, 2 * 4 / 2)
    assert zero_stages.formulas("2", 4) == (4 + (4 + 8) / 4, 2 * 4 * 3 / 4)
    assert zero_stages.formulas("3", 4) == (16 / 4, 3 * 4 * 3 / 4)
    assert zero_stages.formulas("3, gathered twice", 1) == (16, 0)


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_send_three_times_the_weights(tmp_path):
    """Within a thousandth: gloo's headers, norms, and what rounds vectors up to whole elements per rank."""
    zero_stages.write_model(tmp_path, layers=1)
    row = zero_stages.run(tmp_path, "2", 2)
    size = 4 * row["parameters"]
    assert row["sent"] == pytest.approx(3 * size / 2, rel=1e-3)
    assert row["states"]["Adam"] == pytest.approx(2 * size / 2, rel=1e-3)
    # ZeRO-2 has a float32 copy even of float32 weights.
    assert row["states"]["copy"] == pytest.approx(size / 2, rel=1e-3)
    assert row["peak"] > sum(row["states"].values())
