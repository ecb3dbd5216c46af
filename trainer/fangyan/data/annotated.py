"""Files with predictions in place of their tags: streamed, all else byte for byte."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fangyan.data.example import Annotation, Example

# CoNLL-U's own; a colon is as good.
_COMMENT = re.compile(r"\ufeff?#\s*([\w.\[\]/-]+)\s*[=:]\s*(.*\S)")
# From a file's examples, without tags, to one annotation for each.
Annotator = Callable[[Iterator[Example]], Iterator[Annotation]]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines of a file, with at most one example.

    Attributes:
        lines: with their line ends.
        example: that they hold, or None.
        rows: indices of the lines that the annotation changes: of each token, or of the example.
    """

    lines: list[str]
    example: Example | None = None
    rows: tuple[int, ...] = ()


def examples_of(blocks: Iterable[Block]) -> Iterator[Example]:
    """Yield the examples of blocks that have one."""
    return (block.example for block in blocks if block.example is not None)


def annotate_blocks(
    blocks: Iterable[Block], annotate: Annotator, write: Callable[[Block, Annotation], Iterable[str]]
) -> Iterator[str]:
    """Yield the lines of a file, those of its examples as ``write`` changes them.

    Args:
        blocks: of the file; no more are kept than ``annotate`` reads ahead.
        annotate: the model.
        write: returns the lines of a block with its annotation.
    """
    waiting: deque[Block] = deque()

    def examples() -> Iterator[Example]:
        for block in blocks:
            waiting.append(block)
            if block.example is not None:
                yield block.example

    for annotation in annotate(examples()):
        while waiting[0].example is None:
            yield from waiting.popleft().lines
        yield from write(waiting.popleft(), annotation)
    for block in waiting:
        yield from block.lines


def comments(blocks: Iterable[Block]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the source of each example, and the comments ``# key = value`` before it."""
    for block in blocks:
        if block.example is not None:
            matches = (_COMMENT.match(line) for line in block.lines[: block.rows[0]])
            yield block.example.source, {match[1]: match[2] for match in matches if match is not None}


def likely_tags(annotation: Annotation, token: int) -> list[str]:
    """Return ``tag:probability`` of a token's most likely tags, where the annotation has them."""
    if annotation.probabilities is None:
        return []
    return [f"{tag}:{probability:.4f}" for tag, probability in annotation.probabilities[token]]
