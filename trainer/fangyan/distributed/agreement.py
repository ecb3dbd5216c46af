"""What all ranks have to have in common before the first step, and which node differs."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping

from fangyan.distributed.process_group import gathered
from fangyan.errors import UserError


def assert_agreement(facts: Mapping[str, str]) -> None:
    """Refuse a run whose ranks differ. Collective.

    Args:
        facts: of this rank, by what they are called: a version, or a digest of what was read.

    Raises:
        UserError: on every rank, naming the first fact in which a rank differs from the most.
    """
    found = gathered((socket.gethostname(), facts))
    for name in facts:
        values = [other[name] for _, other in found]
        usual = max(values, key=values.count)
        differing = next((rank for rank, value in enumerate(values) if value != usual), None)
        if differing is not None:
            like = values.index(usual)
            raise UserError(
                f"{name}: rank {differing} on {found[differing][0]} has {values[differing]}, rank {like} on "
                f"{found[like][0]} {usual}; expected the same on every node"
            )


def digest_of(text: str) -> str:
    """Return a digest that is short enough for a message."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
