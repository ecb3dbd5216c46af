"""fangyan (方言, "dialect"): adapts language models to dialects and local languages.

import fangyan

result = fangyan.train("recipes/cantonese-pos.yaml")
print(fangyan.load(result.folder).predict(["你食咗飯未呀?"])[0])
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fangyan.errors import UserError

if TYPE_CHECKING:
    from fangyan.loop import Result, train
    from fangyan.predict import Generator, Prediction, Predictor, load, merge
    from fangyan.recipe import Recipe, load_recipe

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "Prediction",
    "Predictor",
    "Recipe",
    "Result",
    "UserError",
    "load",
    "load_recipe",
    "merge",
    "train",
]

# DeepSpeed and transformers take seconds to import: `fangyan --help` does without them.
_HOMES = {
    "Generator": "predict",
    "Prediction": "predict",
    "Predictor": "predict",
    "Recipe": "recipe",
    "Result": "loop",
    "load": "predict",
    "load_recipe": "recipe",
    "merge": "predict",
    "train": "loop",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fangyan' has no attribute {name!r}")
    return getattr(import_module(f"fangyan.{_HOMES[name]}"), name)
