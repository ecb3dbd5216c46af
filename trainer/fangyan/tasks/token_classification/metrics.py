"""Metrics of predicted tags against gold tags."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from fangyan.tasks.task import Metrics
from fangyan.tasks.token_classification.scheme import Scheme

Tags = Sequence[str]

# Tokens that seqeval is given as one sentence, if there is a place to cut it.
_LONGEST = 100

PRIMARY_METRIC: dict[Scheme, str] = {
    "segmentation": "joint_f1",
    "iob2": "entity_f1",
    "plain": "token_accuracy",
}


def tag_metrics(gold: Sequence[Tags], predicted: Sequence[Tags], scheme: Scheme) -> Metrics:
    """Return all metrics of a scheme, in percent."""
    metrics = {"token_accuracy": token_accuracy(gold, predicted)}
    if scheme == "segmentation":
        metrics |= word_metrics(gold, predicted)
    elif scheme == "iob2":
        metrics |= entity_metrics(gold, predicted)
    return metrics


def word_spans(tags: Tags) -> list[tuple[int, int, str]]:
    """Return words as (start, end, tag): a word starts at every ``B-``, or at the sentence's first token.

    The word's tag is that of its first token.
    """
    starts = [i for i, tag in enumerate(tags) if i == 0 or tag.startswith("B-")]
    ends = [*starts[1:], len(tags)] if starts else []
    return [(start, end, tags[start][2:]) for start, end in zip(starts, ends, strict=True)]


def token_accuracy(gold: Sequence[Tags], predicted: Sequence[Tags]) -> float:
    """Return the percentage of tokens whose whole tag is right."""
    pairs = [(g, p) for gs, ps in zip(gold, predicted, strict=True) for g, p in zip(gs, ps, strict=True)]
    return 100.0 * sum(g == p for g, p in pairs) / max(len(pairs), 1)


def word_metrics(gold: Sequence[Tags], predicted: Sequence[Tags]) -> Metrics:
    """Return metrics of joint segmentation and tagging, in percent.

    Returns:
        ``pos_accuracy``: of the gold words, how many have the right tag at their first token.
        ``segmentation_f1``: F1 of word spans. ``joint_f1``: F1 of word spans with their tags.
    """
    pairs = zip(gold, predicted, strict=True)
    sums = [sum(column) for column in zip(*(count_words(*pair) for pair in pairs), strict=True)]
    gold_words, predicted_words, same_span, same_word, right_tag = sums or [0] * 5
    total = max(gold_words + predicted_words, 1)
    return {
        "pos_accuracy": 100.0 * right_tag / max(gold_words, 1),
        "segmentation_f1": 200.0 * same_span / total,
        "joint_f1": 200.0 * same_word / total,
    }


def count_words(gold: Tags, predicted: Tags) -> tuple[int, int, int, int, int]:
    """Return a sentence's words of gold and predicted, and how many of these have the same bounds; the same
    bounds and tag; and how many of gold have the right tag at their first token.
    """
    gold_spans, predicted_spans = word_spans(gold), word_spans(predicted)
    return (
        len(gold_spans),
        len(predicted_spans),
        len({span[:2] for span in gold_spans} & {span[:2] for span in predicted_spans}),
        len(set(gold_spans) & set(predicted_spans)),
        sum(predicted[start][2:] == tag for start, _, tag in gold_spans),
    )


def entity_metrics(gold: Sequence[Tags], predicted: Sequence[Tags]) -> Metrics:
    """Return entity precision, recall and F1 in percent: seqeval, strict IOB2 (it guesses unless told)."""
    from seqeval.metrics import f1_score, precision_score, recall_score  # brings sklearn: a second
    from seqeval.scheme import IOB2

    if not gold:  # seqeval takes no empty list
        return dict.fromkeys(("entity_precision", "entity_recall", "entity_f1"), 0.0)
    arguments = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    gold_lists, predicted_lists = cut_sentences(gold, predicted)
    with warnings.catch_warnings():
        # seqeval warns where a type is never predicted; the zero in the score says it.
        warnings.simplefilter("ignore")
        return {
            "entity_precision": 100.0 * float(precision_score(gold_lists, predicted_lists, **arguments)),
            "entity_recall": 100.0 * float(recall_score(gold_lists, predicted_lists, **arguments)),
            "entity_f1": 100.0 * float(f1_score(gold_lists, predicted_lists, **arguments)),
        }


def cut_sentences(gold: Sequence[Tags], predicted: Sequence[Tags]) -> tuple[list[list[str]], list[list[str]]]:
    """Cut long sentences where no entity is cut: seqeval's time grows with the square of their length.

    20,000 tokens in one sentence take it 2.5 s, cut 0.3 s.
    """
    pieces: tuple[list[list[str]], list[list[str]]] = [], []
    for sides in zip(gold, predicted, strict=True):
        start = 0
        for i, tags in enumerate(zip(*sides, strict=True)):
            if i - start >= _LONGEST and not any(tag.startswith("I-") for tag in tags):
                for side, cut in zip(sides, pieces, strict=True):
                    cut.append(list(side[start:i]))
                start = i
        for side, cut in zip(sides, pieces, strict=True):
            cut.append(list(side[start:]))
    return pieces
