"""What ``fangyan check`` says against what runs take."""

import re

import pytest
from fangyan.models import load_token_classifier
from fangyan.recipe import Model
from transformers import ElectraConfig

SIZES = {"hidden_size": 512, "embedding_size": 512, "num_hidden_layers": 8, "intermediate_size": 2048}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model large enough to be seen beside Python and its libraries."""
    folder = tmp_path_factory.mktemp("model")
    model, tokenizer = load_token_classifier(Model(), ["a", "b"], seed=0)
    tokenizer.save_pretrained(folder)
    ElectraConfig(**(model.config.to_diff_dict() | SIZES | {"num_attention_heads": 8})).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (1, ()),
        (1, ("optimizer.name=adamw8bit", "engine.zero_stage=2", "engine.offload=optimizer")),
        (2, ("engine.zero_stage=3",)),
    ],
    ids=str,
)
def test_a_runs_peak_is_within_a_tenth(cli, folder, ranks, options):
    options = (
        f"model.path={folder}",
        "model.pretrained=false",
        "train.epochs=1",
        "train.batch_tokens=1024",
        *options,
    )
    options += ("train.checkpoint_every=null", "optimizer.layer_decay=1.0")
    out, _ = cli("check", *cli.train_arguments(*options)[1:], "--ranks", str(ranks))
    said = float(re.search(r"peak\D+([\d,]+) │\n", out)[1].replace(",", ""))
    out, _ = cli.train(*options, ranks=ranks)
    measured = 1000 * float(re.search(r"peak memory ([\d.]+) GB", out)[1])
    assert said == pytest.approx(measured, rel=0.1)


def test_states_by_parameter(cli):
    """Two bytes for a matrix's numbers, eight for those of embeddings, norms and biases."""
    rows = {}
    for name in ("adamw", "adamw8bit"):
        out, _ = cli("check", *cli.train_arguments(f"optimizer.name={name}", "freeze.embeddings=true")[1:])
        rows[name] = float(re.search(r"optimizer states\D+([\d.]+)", out)[1])
    assert rows["adamw"] == 8.0
    assert 2.03 < rows["adamw8bit"] < 2.1
