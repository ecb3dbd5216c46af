"""The command env, on this machine."""

from __future__ import annotations

from rich.table import Table

from fangyan.terminal import Terminal


def env() -> None:
    """Show what this machine has: send it with a bug report."""
    from fangyan.environment import describe

    table = Table("part", "found")
    for name, value in describe().items():
        table.add_row(name, value)
    Terminal().print(table)
