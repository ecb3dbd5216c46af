"""The outline of a page that fangyan writes, and whether it is well-formed."""

import json
from html.parser import HTMLParser

_VOID = {"meta", "link", "input", "br", "img", "path", "rect", "use"}


class Outline(HTMLParser):
    """Checks that all elements are closed in order; keeps ids, headings, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.headings, self.data = [], [], [], {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.headings += [int(tag[1])] if tag in ("h1", "h2", "h3") else []
        if tag not in _VOID:
            self.open.append((tag, attributes))

    def handle_startendtag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, text):
        if self.open and self.open[-1][1].get("type") == "application/json":
            self.data[self.open[-1][1]["id"]] = json.loads(text)


def outline(path):
    return Outline(path.read_text(encoding="utf-8"))
