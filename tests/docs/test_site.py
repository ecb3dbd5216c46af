"""The documentation as a site: it builds strictly, asks no other host, and its search finds any script."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from browser import open_browser, skip_without_browser
from documentation import ROOT

pytest.importorskip("material", reason="needs the package mkdocs-material")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A link that leads nowhere, or a page that the menu has not, ends the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (built.returncode, built.stdout) == (0, "")
    return folder


class Loaded(HTMLParser):
    """What a page makes a browser load."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in ("script", "img", "iframe") and "src" in attributes:
            self.addresses.append(attributes["src"])
        if tag == "link" and attributes.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.addresses.append(attributes["href"])


def test_pages_load_nothing_but_files_of_the_site(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert len(loaded.addresses) > 3
        for address in loaded.addresses:
            # 404.html is served from any folder, and so names files from the top.
            start = site if address.startswith("/") else page.parent
            assert (start / address.lstrip("/")).is_file(), f"{page.relative_to(site)}: {address}"


def test_links_out_of_docs_lead_to_pages(site):
    page = (site / "tags.html").read_text(encoding="utf-8")
    (recipe,) = set(re.findall(r'href="([^"]*cantonese-names[^"]*)"', page))
    shown = (site / recipe).read_text(encoding="utf-8")
    assert "hkcancor" in shown
    assert 'href="repository/trainer/fangyan/recipes/cantonese-pos.yaml.html"' in (
        site / "index.html"
    ).read_text(encoding="utf-8")


@skip_without_browser
def test_search_of_files_finds_any_script_without_another_host(site):
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for text, title in (("睇波", "Find answers in a text"), ("BADGE", "Label what helps most")):
            page.goto((site / "index.html").as_uri())
            page.locator("label[for=__search]").first.click()
            page.locator(".md-search__input").fill(text)
            page.keyboard.press("End")
            page.locator(".md-search-result__article h1", has_text=title).wait_for(timeout=20_000)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []
    assert complaints == []
