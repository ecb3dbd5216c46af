"""Small models that come inside other Python packages, and one that is a configuration alone.

Add a module here and register it below. Each has a name that ``model.path`` may say.
"""

from __future__ import annotations

from collections.abc import Callable

from fangyan.models.packaged.cantonese_qwen3 import read_cantonese_qwen3
from fangyan.models.packaged.electra import read_electra
from fangyan.models.packaged.package import PackagedModel
from fangyan.models.packaged.smollm2 import read_smollm2

PACKAGED: dict[str, Callable[[bool], PackagedModel]] = {
    "cantonese-electra": read_electra,
    "cantonese-qwen3": read_cantonese_qwen3,
    "smollm2-135m": read_smollm2,
}
