"""What a training step minimizes. Add a module here and register it below."""

from fangyan.config import OneOf
from fangyan.objectives.cross_entropy import CrossEntropy
from fangyan.objectives.distillation import Distillation
from fangyan.objectives.ewc import EWC
from fangyan.objectives.l2sp import L2SP

OBJECTIVES = OneOf(
    CrossEntropy,
    Distillation,
    EWC,
    L2SP,
    default="cross_entropy",
)
