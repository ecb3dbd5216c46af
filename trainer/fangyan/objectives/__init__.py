"""What a training step minimizes. Add a module here and register it below."""

from fangyan.config import OneOf
from fangyan.objectives.cross_entropy import CrossEntropy

OBJECTIVES = OneOf(
    CrossEntropy,
    default="cross_entropy",
)
