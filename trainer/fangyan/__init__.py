"""fangyan (方言, "dialect"): adapts language models to dialects and local languages.

.. code-block:: python

    import fangyan

    result = fangyan.train("cantonese-pos")
    print(fangyan.load(result.folder).predict(["你食咗飯未呀?"])[0])
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fangyan.errors import UserError

if TYPE_CHECKING:
    from fangyan.analysis.compare import compare
    from fangyan.analysis.probe import probe
    from fangyan.inference.load import evaluate, export, load, merge
    from fangyan.recipe import Recipe, load_recipe
    from fangyan.selection.select import select
    from fangyan.training.train import train
    from fangyan.training.trainer import Result, Trainer

# DeepSpeed and transformers take seconds to import: `fangyan --help` does without them.
_HOMES = {
    "Recipe": "recipe",
    "Result": "training.trainer",
    "Trainer": "training.trainer",
    "compare": "analysis.compare",
    "evaluate": "inference.load",
    "export": "inference.load",
    "load": "inference.load",
    "load_recipe": "recipe",
    "merge": "inference.load",
    "probe": "analysis.probe",
    "select": "selection.select",
    "train": "training.train",
}

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "Result",
    "Trainer",
    "UserError",
    "compare",
    "evaluate",
    "export",
    "load",
    "load_recipe",
    "merge",
    "probe",
    "select",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fangyan' has no attribute {name!r}")
    return getattr(import_module(f"fangyan.{_HOMES[name]}"), name)
