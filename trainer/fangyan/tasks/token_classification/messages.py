"""What a user has to know of the tags in the data, each in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fangyan.tasks.token_classification.recognition import TagPairs, broken_rule
from fangyan.tasks.token_classification.scheme import Notation, Scheme

# Places that a message names.
_NAMED = 3
_LISTED = 8


def data_messages(
    pairs: Mapping[str, TagPairs], scheme: Scheme, notation: Notation, line_per_token: bool
) -> list[str]:
    """Return messages on tags that cannot be learned: a typo, or a rare tag; and on those that break rules.

    Args:
        pairs: of each split.
        scheme: what the tags mark.
        notation: that they are in.
        line_per_token: whether a file has a line for every token.
    """
    tags = {name: set(split.tags()) for name, split in pairs.items()}
    unseen = sorted(set().union(*tags.values()) - tags["train"])
    messages = []
    if unseen:
        more = f", … ({len(unseen):,} in all)" if len(unseen) > _LISTED else ""
        messages.append(f"tags that never occur in train: {', '.join(unseen[:_LISTED])}{more}")
    total, named = 0, []
    for split in pairs.values():
        for pair, count in split.counts.items():
            if rule := broken_rule(pair, notation, scheme):
                total += count
                named.append(f"{split.places[pair].describe(line_per_token)} ({rule})")
    if total:
        more = ", …" if total > min(len(named), _NAMED) else ""
        tags_are = f"{total:,} tags break a rule" if total > 1 else "1 tag breaks a rule"
        messages.append(
            f"{tags_are} of {notation.name}: {', '.join(named[:_NAMED])}{more}; read as conlleval does: what "
            "continues nothing begins a span"
        )
    return messages


def unlearned_message(pairs: TagPairs, unlearned: Sequence[str]) -> str:
    """Return a message on tags that a model has not learned.

    Args:
        pairs: of the examples that it is evaluated on.
        unlearned: the tags.
    """
    counts = pairs.tags()
    named = [f"{tag} ({counts[tag]:,}, first in {pairs.first(tag).source})" for tag in sorted(unlearned)]
    more = ", …" if len(named) > _NAMED else ""
    return f"tags that the model has not learned are scored as errors: {', '.join(named[:_NAMED])}{more}"
