"""What ``fangyan estimate-memory`` says against what runs take."""

import re

import pytest
from fangyan.models.loading import ModelConfig
from fangyan.recipe import load_recipe
from fangyan.tasks.token_classification.task import TokenClassification
from fangyan.training import memory
from fangyan.training.memory import estimate_memory
from fangyan.training.workload import Workload
from transformers import ElectraConfig

SIZES = {"hidden_size": 512, "embedding_size": 512, "num_hidden_layers": 8, "intermediate_size": 2048}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model large enough to be seen beside Python and its libraries."""
    folder = tmp_path_factory.mktemp("model")
    task = TokenClassification(["a", "b"], "plain")
    model, tokenizer = ModelConfig().load(task.auto_model, 0, task.model_kwargs())
    tokenizer.save_pretrained(folder)
    config = model.config.to_diff_dict() | SIZES | {"num_attention_heads": 8}
    ElectraConfig(**config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (1, ()),
        (1, ("optimizer.name=adamw8bit", "engine.zero_stage=2", "engine.offload=optimizer")),
        pytest.param(2, ("engine.zero_stage=3",), marks=pytest.mark.ranks),
    ],
    ids=str,
)
def test_estimate_memory_is_within_a_tenth_of_a_run(cli, folder, ranks, options):
    options = (
        f"model.path={folder}",
        "model.pretrained=false",
        "train.epochs=1",
        "train.batch_tokens=1024",
        *options,
    )
    options += ("train.checkpoint_every=null", "optimizer.layer_decay=1.0")
    out, _ = cli("estimate-memory", *cli.train_arguments(*options)[1:], "--ranks", str(ranks))
    estimated = float(re.search(r"peak\D+([\d,]+) │\n", out)[1].replace(",", ""))
    # What ZeRO-3 gathers ahead, and so its peak, differs by a fifth from run to run: the largest of four.
    measured = 0.0
    for _ in range(4 if ranks > 1 else 1):
        out, _ = cli.train(*options, ranks=ranks)
        measured = max(measured, 1000 * float(re.search(r"peak memory ([\d.]+) GB", out)[1]))
        if measured == pytest.approx(estimated, rel=0.09):
            break
    assert estimated == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
def test_estimate_memory_of_optimizer_states(cli):
    """Two bytes for a parameter of a matrix, eight for one of embeddings, norms and biases."""
    rows = {}
    for name in ("adamw", "adamw8bit"):
        options = ("model.path=cantonese-electra", "adaptation.freeze_embeddings=true")
        options += (f"optimizer.name={name}",)
        out, _ = cli("estimate-memory", *cli.train_arguments(*options)[1:])
        rows[name] = float(re.search(r"optimizer states\D+([\d.]+)", out)[1])
    assert rows["adamw"] == 8.0
    assert 2.03 < rows["adamw8bit"] < 2.1


@pytest.mark.slow
def test_estimate_memory_counts_nf4_weights_as_parameters(tmp_path):
    """Half a byte each and their scales, but for the embeddings, norms and biases."""
    (tmp_path / "few.conll").write_text("我\tB-r\n食\tB-v\n飯\tB-n\n\n" * 4, encoding="utf-8")
    data = ["data.format=conll", f"data.train={tmp_path}/few.conll", f"data.dev={tmp_path}/few.conll"]
    data += ["data.test=null", "adaptation.name=lora", "optimizer.layer_decay=1.0"]
    items = []
    for options in ([], ["adaptation.quantization=nf4"]):
        estimate = estimate_memory(Workload(load_recipe("cantonese-pos", [*data, *options])), ranks=1)
        items.append(next(item for item in estimate.items if item.name == "weights"))
    plain, packed = items
    assert packed.elements == plain.elements > 5.9e6
    assert plain.nbytes / plain.elements == pytest.approx(4.0, rel=0.01)
    # 4.7 of the 6 M parameters are in linear layers.
    assert 0.9 < packed.nbytes / packed.elements < 2.0


@pytest.mark.slow
def test_estimate_memory_counts_a_shard_of_an_export(monkeypatch):
    """And the largest weight beside it: a whole model is written in pieces."""
    workload = Workload(load_recipe("cantonese-pos", ["data.train=[FC-R005_v2]", "data.dev=[FC-R009_v]"]))
    sizes = [4 * parameter.numel() for parameter in workload.model.parameters()]
    for size, expected in [
        (10**9, sum(sizes)),
        (10**6, 2 * max(sizes)),
        (11 * 10**6, 11 * 10**6 + max(sizes)),
    ]:
        monkeypatch.setattr(memory, "SHARD_SIZE", size)
        assert memory._export(workload, 0) == expected
