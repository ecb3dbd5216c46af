"""The next sub-word of raw text: continued pre-training of a causal model, and generation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fangyan.data.encode import Encoder, Window
from fangyan.data.examples import Example
from fangyan.tasks.scores import Scores


class LanguageModelling:
    """Windows of raw text, and the perplexities of a model on it."""

    name = "language_modelling"
    peft_type = "CAUSAL_LM"
    # Of a character: independent of how many sub-words a tokenizer makes of a dialect's text.
    metric = "character_perplexity"
    score_names = ("character_perplexity", "subword_perplexity", "bits_per_character")
    lower_is_better = True
    unit = ""

    def encode(self, examples: Sequence[Example], encoder: Encoder) -> list[list[Window]]:
        """The windows of each document, whose targets are the next sub-words."""
        return [encoder.text_windows(example.tokens[0]) for example in examples]

    def scores(self, loss: float, subwords: int, characters: int) -> Scores:
        """From the summed loss in nats, over all sub-words and the end of each document."""
        if not subwords or not characters:
            return dict.fromkeys(self.score_names, math.inf)
        return {
            "character_perplexity": _exp(loss / characters),
            "subword_perplexity": _exp(loss / subwords),
            "bits_per_character": loss / characters / math.log(2),
        }


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
