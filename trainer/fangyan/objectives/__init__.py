"""What a training step minimizes. A new objective is a file here, and a line below."""

from fangyan.config import OneOf
from fangyan.objectives.cross_entropy import CrossEntropy

OBJECTIVES = OneOf(
    CrossEntropy,
    default="cross_entropy",
)
