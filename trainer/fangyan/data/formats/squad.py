"""SQuAD's own files: articles of paragraphs with their questions, as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from typing_extensions import override

from fangyan.data.example import Example, read_lines
from fangyan.data.formats.questions import question
from fangyan.data.json_text import parse_json
from fangyan.data.splits import DataConfig
from fangyan.errors import UserError

_COLUMNS = {"question": "question", "context": "context", "answers": "answers"}


class Squad(DataConfig):
    """SQuAD's own JSON, of version 1 or 2: articles of paragraphs with questions and answers."""

    format: Literal["squad"] = "squad"
    fields: ClassVar[tuple[str, ...]] = ("question", "context", "answers")

    @override
    def read(self, path: Path) -> Iterator[Example]:
        """Yield the questions of a file; see :class:`DataConfig`. An article's are one group."""
        content = parse_json("\n".join(line for _, line in read_lines(path)), str(path))
        for place, article in _items(content, "data", f"{path}:"):
            title = article.get("title")
            for inner, paragraph in _items(article, "paragraphs", place):
                for source, record in _items(paragraph, "qas", inner):
                    fields = question({"context": paragraph.get("context"), **record}, _COLUMNS, source)
                    if record.get("is_impossible") is True and fields["answers"]:
                        raise UserError(f"{source}: is_impossible is true, but it has answers, expected none")
                    named = isinstance(title, str) and title.strip()
                    yield Example(fields, source, str(title) if named else fields["context"])


def _items(parent: Any, key: str, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a list, each with its place in the file, such as ``data[0].paragraphs[2]``."""
    found = parent.get(key) if isinstance(parent, Mapping) else None
    where = f"{place}{key}" if place.endswith(":") else f"{place}.{key}"
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise UserError(
            f"{where}: {str(found)[:60]!r}, expected a list of objects, as SQuAD's files have them"
        )
    for i, item in enumerate(found):
        yield f"{where}[{i}]", item
