"""The command env, on this machine."""

from __future__ import annotations

from rich.table import Table

from fangyan.cli.options import JsonOption
from fangyan.terminal import print_json, print_results


def env(as_json: JsonOption = False) -> None:
    """Show what this machine has: send it with a bug report."""
    from fangyan.environment import describe

    found = describe()
    if as_json:
        print_json(found)
        return
    table = Table("part", "found")
    for name, value in found.items():
        table.add_row(name, value)
    print_results(table)
