"""Hook of mkdocs: the site has the repository's files that its pages link to, under ``repository/``.

Pages are written for the repository: README.md is at the top, and ``../examples/cantonese-terms.tsv`` is a
file. In the site, README is the home page and README.zh.md the one in Chinese; other Markdown, source files
(as pages of code) and pictures are added as pages link to them, and links lead to where each has come to be.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import File, Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = Path(__file__).parent
TARGET = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HOMES = {"README.md": "index.md", "README.zh.md": "zh/README.md"}
CODE = {".py": "python", ".yaml": "yaml", ".tsv": "text"}


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add what pages link to outside of docs/."""
    waiting = [ROOT / name for name in HOMES]
    waiting += [Path(file.abs_src_path) for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if DOCS not in path.parents:
            files.append(_add(path, config))
        for target in _targets(path):
            if target not in seen and DOCS not in target.parents:
                seen.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links lead to where files are in the site."""
    folder = _folder(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        path = _resolve(folder, match[1])
        if path is None:
            return match[1]  # of which mkdocs says that it leads nowhere
        return os.path.relpath(_in_site(path), PurePosixPath(page.file.src_uri).parent).replace(os.sep, "/")

    return "".join(
        piece if piece.startswith("```") else TARGET.sub(moved, piece) for piece in _pieces(markdown)
    )


def _pieces(markdown: str) -> Iterator[str]:
    """Yield code blocks and what is between them."""
    start = 0
    for block in FENCE.finditer(markdown):
        yield markdown[start : block.start()]
        yield block[0]
        start = block.end()
    yield markdown[start:]


def _targets(path: Path) -> Iterator[Path]:
    """Yield the files and folders that a page links to, or that a folder's page lists."""
    if path.is_dir():
        yield from _listed(path)
    elif path.suffix == ".md":
        for piece in _pieces(path.read_text(encoding="utf-8")):
            for match in TARGET.finditer("" if piece.startswith("```") else piece):
                target = _resolve(path.parent, match[1])
                if target is not None:
                    yield target


def _listed(folder: Path) -> list[Path]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return [entry / "README.md" if (entry / "README.md").exists() else entry for entry in entries]


def _resolve(folder: Path, target: str) -> Path | None:
    path = Path(os.path.normpath(folder / target))
    return path if path.exists() and ROOT in path.parents else None


def _in_site(path: Path) -> str:
    """Return where a file of the repository is in the site, as mkdocs names sources."""
    name = path.relative_to(ROOT).as_posix()
    if name in HOMES:
        return HOMES[name]
    if DOCS in path.parents:
        return path.relative_to(DOCS).as_posix()
    if path.is_dir():
        return f"repository/{name}/index.md"
    return f"repository/{name}.md" if path.suffix in CODE else f"repository/{name}"


def _folder(uri: str) -> Path:
    """Return the folder of the repository that a page's links start from."""
    if uri in HOMES.values():
        return ROOT
    prefix = "repository/"
    return (ROOT / uri.removeprefix(prefix) if uri.startswith(prefix) else DOCS / uri).parent


def _add(path: Path, config: Any) -> File:
    """Return a file for the site: a page, or one that is copied."""
    from mkdocs.structure.files import File

    uri, name = _in_site(path), path.relative_to(ROOT).as_posix()
    if path.is_dir():
        links = [f"- [{entry.relative_to(path)}]({entry.relative_to(path)})" for entry in _listed(path)]
        return File.generated(config, uri, content=f"# {name}\n\n" + "\n".join(links) + "\n")
    if path.suffix in CODE:
        head = f"---\nsearch: {{exclude: true}}\ntitle: {path.name}\n---\n\n# {name}\n"
        code = path.read_text(encoding="utf-8")
        return File.generated(config, uri, content=f"{head}\n````{CODE[path.suffix]}\n{code}````\n")
    return File.generated(config, uri, abs_src_path=str(path))
