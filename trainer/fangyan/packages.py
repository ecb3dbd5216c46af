"""Files that come inside other Python packages: corpora and small models."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fangyan.errors import UserError


def package_folder(module: str, field: str, holds: str, install: str) -> Path:
    """Return the folder of an installed package, which is not imported.

    Args:
        module: the package's name in Python.
        field: the recipe's field and value that need it, for the message.
        holds: what it carries.
        install: the command that installs it.

    Raises:
        UserError: if it is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{field} needs the package {module} (it carries {holds}), which is not installed; run: {install}"
        )
    return Path(spec.submodule_search_locations[0])
