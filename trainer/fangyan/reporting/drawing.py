"""Plots by matplotlib, as SVG that takes its colours from the page and as PNG for papers and slides."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from fangyan.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of the PNG; in the page each is the variable of its style sheet, for light and for dark.
INK, GRID = "#1f2328", "#d0d7de"
SERIES = ("#0b62bc", "#b54708", "#067647", "#8b3fb5", "#7a5c00", "#b42364")
_VARIABLES = {INK: "currentColor", GRID: "var(--line)"} | {
    color: f"var(--series-{i})" for i, color in enumerate(SERIES, start=1)
}
# Fonts of scripts that matplotlib's own lacks, where this machine has them.
_FONTS = ("Noto Sans CJK HK", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Hebrew")
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_TARGET = re.compile(r"^#([\w.-]+)$|url\(#([\w.-]+)\)")
# Inches.
_WIDTH = 4.8
# Characters of a name, for which there has to be room beside the plot.
_LONGEST = 28


@dataclass(frozen=True)
class Picture:
    """A plot.

    Attributes:
        name: of its file.
        title: above it.
        says: what it shows, in a sentence, for those who do not see it.
        svg: for the page.
        png: a file.
        head: of the table of its numbers.
        rows: of this table.
    """

    name: str
    title: str
    says: str
    svg: str
    png: bytes
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def draw(
    name: str,
    title: str,
    says: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    plot: Callable[[Axes], None],
    height: float = 2.8,
    beside: Sequence[str] = (),
    below: Sequence[str] = (),
) -> Picture:
    """Return a plot as both.

    Args:
        name: of its file.
        title: above it.
        says: what it shows.
        head: of the table of its numbers.
        rows: of this table.
        plot: draws into axes.
        height: in inches, without what the names below need.
        beside: names that need room on the left.
        below: names that need room below, upright.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
        **{"axes.edgecolor": GRID, "axes.spines.top": False, "axes.spines.right": False},
        **{"grid.color": GRID, "axes.grid": True, "axes.axisbelow": True, "legend.frameon": False},
        **{"font.size": 10, "font.family": _families(), "svg.fonttype": "none", "svg.hashsalt": name},
        **{"text.parse_math": False, "axes.formatter.use_mathtext": False},
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that no font here has
        # By estimate: matplotlib's own layout draws everything twice more.
        left, room = 0.72 + _room(beside), _room(below) + (0.2 if below else 0)
        bottom, height = 0.52 + room, height + room
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.subplots()
        figure.subplots_adjust(left / _WIDTH, bottom / height, 0.97, 1 - 0.1 / height)
        plot(axes)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(png, format="png", dpi=144, facecolor="white")
    return Picture(name, title, says, _for_page(svg.getvalue(), name), png.getvalue(), head, rows)


def _room(names: Sequence[str]) -> float:
    """Return the inches that names take which stand beside an axis, more than numbers do."""
    widths = [sum(0.15 if ord(c) > 0x1100 else 0.085 for c in plain(name)) for name in names]
    return max(0.0, max(widths, default=0.0) - 0.3)


@cache
def _families() -> list[str]:
    from matplotlib.font_manager import fontManager

    known = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in _FONTS if name in known)]


def plain(text: str) -> str:
    """Return a name as a plot shows it: of what is long, the beginning."""
    shown = printable(text).replace("\n", " ")
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _for_page(svg: str, name: str) -> str:
    """Return an SVG that can stand in a page beside others: names of its own, colours of the page."""
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg)
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    links = {
        match for element in root.iter() for value in element.attrib.values() for match in _targets(value)
    }
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id" and value not in links:
                del element.attrib[key]  # matplotlib names everything
            elif key == "id":
                element.attrib[key] = f"{name}-{value}"
            else:
                element.attrib[key] = _changed(key, value, name)
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title", "aria-describedby": f"{name}-says"}
    return ElementTree.tostring(root, encoding="unicode")


def _targets(value: str) -> list[str]:
    """Return the names that an attribute refers to."""
    return [one or other for one, other in _TARGET.findall(value)]


def _changed(key: str, value: str, name: str) -> str:
    """Return an attribute with the page's colours, and with links to this plot's own names."""
    if key == _LINK:
        return value.replace("#", f"#{name}-", 1)
    value = value.replace("url(#", f"url(#{name}-")
    if key in ("style", "fill", "stroke"):
        for color, variable in _VARIABLES.items():
            value = value.replace(color, variable)
    return value


def number(value: Any) -> str:
    """Return a number as tables have it."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if 0.01 <= abs(value) < 1e6 or not value else f"{value:.3g}"
