"""The optimizers of a recipe. Add a module here and register it below."""

from fangyan.config import OneOf
from fangyan.optimizers.adamw import AdamW
from fangyan.optimizers.eightbit import AdamW8bit, AdEMAMix8bit, Lion8bit, PagedAdamW8bit
from fangyan.optimizers.sgd import SGD

OPTIMIZERS = OneOf(
    AdamW,
    AdamW8bit,
    PagedAdamW8bit,
    Lion8bit,
    AdEMAMix8bit,
    SGD,
    default="adamw",
)
