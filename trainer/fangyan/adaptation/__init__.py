"""Which parameters learn. Add a module here and register it below."""

from fangyan.adaptation.full import Full
from fangyan.adaptation.lora import Dora, Lora
from fangyan.adaptation.peft_methods import IA3, OSF, AdaLora, PrefixTuning, PromptTuning
from fangyan.config import OneOf

ADAPTATIONS = OneOf(
    Full,
    Lora,
    Dora,
    AdaLora,
    IA3,
    OSF,
    PrefixTuning,
    PromptTuning,
    default="full",
)
