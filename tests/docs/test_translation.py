"""The README in Chinese has the code, figures, links and tables of README.md: it cannot go stale unseen."""

import itertools
import re

from documentation import ROOT, blocks

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
NUMBER = re.compile(r"(?<![\w.])\d[\d,.]*\d(?!\w)|(?<![\w.])\d(?!\w)")


def code(page):
    """Code without its comments, which are translated."""
    return [(b.language, b.reason, re.sub(r" *#.*", "", b.text)) for b in blocks(page)]


def prose(page):
    """Sections of a page without code, each a list of its lines."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [section.splitlines() for section in text.split("\n## ")]


def rows(section):
    return [line for line in section if line.startswith("|")]


def test_chinese_readme_has_the_same_code():
    assert code(CHINESE) == code(ENGLISH)


def test_chinese_readme_has_the_same_tables():
    for english, chinese in zip(prose(ENGLISH), prose(CHINESE), strict=True):
        assert len(rows(chinese)) == len(rows(english))
        for ours, theirs in zip(rows(english), rows(chinese), strict=True):
            assert theirs.count("|") == ours.count("|"), theirs
            assert NUMBER.findall(theirs) == NUMBER.findall(ours), theirs
            assert sorted(re.findall(r"`[^`]+`|\*\*[^*]+\*\*", theirs)) == sorted(
                re.findall(r"`[^`]+`|\*\*[^*]+\*\*", ours)
            ), theirs


def test_chinese_readme_has_the_same_links_in_every_section():
    for english, chinese in zip(prose(ENGLISH)[1:], prose(CHINESE)[1:], strict=True):
        ours, theirs = (
            sorted(re.findall(r"\]\(([^)#]+)\)", "\n".join(section))) for section in (english, chinese)
        )
        assert theirs == ours, chinese[0]


def test_no_line_of_chinese_breaks_within_a_phrase():
    """Markdown makes a space of a line break, which Chinese has none of but after its punctuation."""
    for page in (CHINESE, *(ROOT / "docs" / "zh").glob("*.md")):
        for section in prose(page):
            for line, following in itertools.pairwise(section):
                if re.match(r"[一-鿿`\[]", following.strip()):
                    assert not re.search(r"[一-鿿A-Za-z`)]$", line), f"{page}: {line}"
