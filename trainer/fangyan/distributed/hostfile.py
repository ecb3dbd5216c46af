"""The file that names a run's nodes, as DeepSpeed reads it: ``NAME slots=NUMBER`` on each line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fangyan.errors import UserError

_LINE = re.compile(r"(\S+)\s+slots=(\d+)(\s.*)?")
# What ssh takes for a host, and no shell for anything else.
_NAME = re.compile(r"[\w.][\w.@-]*", re.ASCII)


@dataclass(frozen=True)
class Host:
    """A node.

    Attributes:
        name: as ssh knows it.
        slots: how many ranks it has.
        source: file and line that name it.
    """

    name: str
    slots: int
    source: str


def read_hostfile(path: Path) -> list[Host]:
    """Return the nodes in a file's order, whose first has rank 0.

    Raises:
        UserError: naming file and line, what was found and what was expected.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8, expected lines such as node1 slots=4") from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        host = _parse(text, f"{path}:{number}")
        if host.name in hosts:
            raise UserError(
                f"{host.source}: {host.name} again, expected one line with all its slots "
                f"(first in {hosts[host.name].source})"
            )
        hosts[host.name] = host
    if not hosts:
        raise UserError(f"{path}: no nodes, expected lines such as node1 slots=4")
    return list(hosts.values())


def _parse(text: str, source: str) -> Host:
    match = _LINE.fullmatch(text)
    if match is None:
        raise UserError(f"{source}: {text!r}, expected a name and its ranks, such as node1 slots=4")
    name, slots = match[1], int(match[2][:9])  # more digits are too many anyway
    if not _NAME.fullmatch(name):
        raise UserError(f"{source}: {name!r}, expected a host name, an IPv4 address, or one with user@")
    if not 1 <= slots <= 1024:
        raise UserError(f"{source}: slots={match[2]}, expected 1 to 1024 ranks")
    return Host(name, slots, source)
