"""Other Python packages: those that not everyone needs, and files inside some (corpora, small models)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fangyan.errors import UserError


def require(module: str, user: str, install: str) -> None:
    """Refuse to go on where an optional package is not installed; it is not imported.

    Args:
        module: the package's name in Python.
        user: what needs it, for the message.
        install: what pip is to install.

    Raises:
        UserError: if it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"{user} needs the package {module}, which is not installed; run: pip install {install}"
        )


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
