"""bitsandbytes, imported where it is first needed: it is optional, and takes 2.6 seconds."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any


def import_bitsandbytes(needed_by: str) -> Any:
    """Import bitsandbytes, without a warning that concerns nobody here.

    On processors with AVX512-BF16 it warns that Hugging Face's package ``kernels`` is missing, with which
    it would multiply by 4-bit weights itself.

    Args:
        needed_by: what cannot do without it, for the message.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    if module := sys.modules.get("bitsandbytes"):
        return module
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes")
    except ModuleNotFoundError as error:
        if error.name != "bitsandbytes":
            raise
        raise ModuleNotFoundError(
            f"{needed_by}: needs bitsandbytes, which is not installed; run: pip install bitsandbytes",
            name=error.name,
        ) from None
    finally:
        logger.setLevel(level)
