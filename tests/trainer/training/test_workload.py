"""What ranks compare before the first step."""

import pytest
from model_families import BY_NAME
from safetensors.torch import load_file, save_file
from tiny_runs import run_of, workload


@pytest.mark.parametrize("pretrained", [True, False])
def test_digests_tell_other_weights_of_the_same_shapes(tmp_path, pretrained):
    """Unless they are not used."""
    full = {"adaptation": {"name": "full"}}
    first = workload(BY_NAME["BERT"], tmp_path, **full).digests()
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    save_file({name: -7 * weight for name, weight in weights.items()}, file, {"format": "pt"})
    model = {"path": str(tmp_path / "base"), "pretrained": pretrained}
    if not pretrained:
        first = run_of(BY_NAME["BERT"], tmp_path, model=model, **full).digests()
    second = run_of(BY_NAME["BERT"], tmp_path, model=model, **full).digests()
    assert {name for name in first if first[name] != second[name]} == (
        {"model.path"} if pretrained else set()
    )
