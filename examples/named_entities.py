"""Trains a named-entity tagger for Cantonese on a few sentences, and tags new ones.

    python examples/named_entities.py

Needs the extra ``fangyan[cantonese]``, which carries the model. For real data, give your own files instead.
"""

from pathlib import Path

import fangyan

PEOPLE, PLACES = ("阿明", "阿芬", "陳生", "李太"), ("中環", "旺角", "沙田", "元朗", "西貢")
TEMPLATES = (
    "{person}住喺{place}。",
    "{person}今日去{place}飲茶。",
    "我喺{place}撞到{person}。",
    "{place}好多人。",
)


def conll(template: str, person: str, place: str) -> str:
    """Return a sentence in CoNLL: one character and its tag per line, entities in IOB2."""
    marked = template.format(person=f"|PER:{person}|", place=f"|LOC:{place}|").split("|")
    lines = []
    for piece in filter(None, marked):
        kind, colon, name = piece.partition(":")
        tags = [f"B-{kind}"] + [f"I-{kind}"] * (len(name) - 1) if colon else ["O"] * len(piece)
        lines += [f"{character} {tag}" for character, tag in zip(name or piece, tags, strict=True)]
    return "\n".join(lines) + "\n\n"


Path("names.conll").write_text(
    "".join(conll(*words) for words in ((t, a, b) for t in TEMPLATES for a in PEOPLE for b in PLACES)),
    encoding="utf-8",
)
Path("names.yaml").write_text(
    "{name: names, data: {format: conll, tokens: characters, train: names.conll}, optimizer: {lr: 1.0e-3}}",
    encoding="utf-8",
)
result = fangyan.train("names.yaml")
print(fangyan.load(result.folder).predict(["何生住喺大埔。"])[0])
