"""A classifier's rows by the names of their labels: a model that goes on with others keeps those it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fangyan.models.files import stored_tensors
from fangyan.models.structure import head_name


def carry_rows(model: Any, path: str | Path, stored: Mapping[int, str]) -> None:
    """Give a head the rows that its files have for the same labels, in whatever order they are.

    transformers itself keeps a head of as many labels, whatever their names, and drops any other. Rows of
    labels that the files do not have stay as it left them: those that were in their places, or new ones. A
    head all of whose labels were there is no longer among the model's ``new_weights``; one with others is.

    Args:
        model: of transformers for classification, loaded from ``path`` with other labels than its files have.
        path: a folder, or a name on the hub.
        stored: the labels of its files, by number.
    """
    wanted = model.config.id2label
    places = {label: i for i, label in stored.items()}
    rows = [(new, places[label]) for new, label in wanted.items() if label in places]
    name = head_name(model, model.config.num_labels)
    head = model.get_submodule(name)
    assert isinstance(head, nn.Linear)
    found = stored_tensors(path, {f"{name}.{kind}" for kind, _ in head.named_parameters()})
    is_whole = bool(found) and len(rows) == len(wanted)
    with torch.no_grad():
        for kind, parameter in head.named_parameters():
            old = found.get(f"{name}.{kind}")
            if old is None or len(old) != len(stored):
                is_whole = False
                continue
            rewritten = parameter.data.clone()  # what is read from a file may be the file itself
            for new, place in rows:
                rewritten[new] = old[place].to(rewritten.dtype)
            parameter.data = rewritten
    others = {weight for weight in model.new_weights if weight.rpartition(".")[0] != name}
    own = set() if is_whole else {f"{name}.{kind}" for kind, _ in head.named_parameters()}
    model.new_weights = sorted(others | own)
