"""Every model family: its layout computes what the model alone does, adapters learn, and exports reload."""

import re

import pytest
import torch
from documentation import ROOT
from fangyan.adaptation.peft_model import without_peft_warnings
from fangyan.inference.load import load_exported
from model_families import FAMILIES
from peft import PeftModel
from tiny_runs import assert_same, exported, learn, packed_logits, plain_logits, workload
from torch.nn.functional import cross_entropy


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family(family, tmp_path):
    run = workload(family, tmp_path)
    packed, sequences, pad_id = run.model, run.sequences, run.tokenizer.pad_id
    assert packed.layout == family.layout
    assert len([message for message in run.messages if "train.packing" in message]) == (
        packed.layout != "varlen"
    )
    before = family.auto_model.from_pretrained(tmp_path / "base")
    labels = torch.tensor([label for sequence in sequences for label in sequence.labels])
    if family.causal:  # a new head is random
        alone = plain_logits(before, sequences)
        for layout in {family.layout, "unpadded", *(["padded"] if family.layout != "unpadded" else [])}:
            packed.use_layout(layout)
            found, loss = packed_logits(packed, sequences, pad_id)
            assert_same(found, alone)
            expected = cross_entropy(torch.cat(alone), labels, reduction="sum")
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
        packed.use_layout(family.layout)
    learn(run)
    found, _ = packed_logits(packed, sequences, pad_id)
    folder = exported(run, tmp_path / "model")
    again, _ = packed_logits(load_exported(folder).packed(), sequences, pad_id)
    assert_same(again, found)
    labels = {} if family.causal else {"num_labels": 3}
    plain = family.auto_model.from_pretrained(tmp_path / "base", **labels)
    with without_peft_warnings():
        adapted = PeftModel.from_pretrained(plain, folder)
    assert_same(plain_logits(adapted, sequences), found)


def test_documentation_names_every_family():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("## Families")[2]
    rows = re.findall(r"^\| (varlen|rows|padded|unpadded) \| (.*) \|$", page, re.MULTILINE)
    documented = {layout: set(names.split(", ")) for layout, names in rows}
    tested = {layout: set() for layout in documented}
    for family in FAMILIES:
        tested[family.layout] |= set(family.name.split(", "))
    assert documented == tested
