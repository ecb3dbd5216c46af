"""Taggers that start from nothing, as classes of transformers; importing this registers them.

``import fangyan.models.word_form`` before ``AutoModelForTokenClassification.from_pretrained`` of an export.
"""

from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification

from fangyan.models.word_form.configuration import WordFormConfig
from fangyan.models.word_form.modeling import WordFormForTokenClassification, WordFormModel

__all__ = ["WordFormConfig", "WordFormForTokenClassification", "WordFormModel"]

AutoConfig.register("word_form", WordFormConfig, exist_ok=True)
AutoModel.register(WordFormConfig, WordFormModel, exist_ok=True)
AutoModelForTokenClassification.register(WordFormConfig, WordFormForTokenClassification, exist_ok=True)
