"""A task's classes as a model's configuration has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def config_fields(labels: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a configuration that name a head's outputs, in order."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def labels_of(config: Any) -> list[str]:
    """Return the names of a head's outputs.

    Raises:
        ValueError: if they are none.
    """
    labels = [config.id2label[i] for i in range(config.num_labels)]
    if not all(isinstance(label, str) for label in labels):
        raise ValueError(f"id2label is {str(config.id2label)[:60]}, expected names of labels")
    return labels
