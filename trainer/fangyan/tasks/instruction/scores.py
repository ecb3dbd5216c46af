"""Scores of written answers against the right ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fangyan.tasks.task import Metrics

# Han and kana, which BLEU has to be given one by one.
_HAN = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_THAI = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")


def answer_scores(answers: Sequence[str], references: Sequence[str]) -> Metrics:
    """Return chrF (Popovic 2015), BLEU (Papineni et al. 2002) by sacrebleu, and exact match, in percent.

    BLEU's words are those of sacrebleu's tokenizer 13a; characters where the references are mostly Chinese
    or kana (``zh``), or of another script without spaces (``char``).
    """
    from sacrebleu import corpus_bleu, corpus_chrf

    found = [answer.strip() for answer in answers]
    right = [[reference.strip() for reference in references]]
    same = sum(left == reference for left, reference in zip(found, right[0], strict=True))
    return {
        "chrf": float(corpus_chrf(found, right).score),
        "bleu": float(corpus_bleu(found, right, tokenize=_tokenizer(right[0])).score),
        "exact_match": 100.0 * same / max(len(found), 1),
    }


def _tokenizer(references: Sequence[str]) -> str:
    text = " ".join(references)
    words = len(re.findall(r"[^\W\d_]+", _THAI.sub(" ", _HAN.sub(" ", text))))
    for name, pattern in (("zh", _HAN), ("char", _THAI)):
        if len(pattern.findall(text)) > 2 * words:
            return name
    return "13a"
