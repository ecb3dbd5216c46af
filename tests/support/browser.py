"""Debian's Chromium without a window, driven by Playwright: for tests of pages that fangyan makes."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    # What would ask other hosts by itself.
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def _missing() -> str | None:
    if find_spec("playwright") is None:
        return "needs the package playwright"
    return None if CHROMIUM.is_file() else f"needs Debian's package chromium ({CHROMIUM})"


skip_without_browser = pytest.mark.skipif(_missing() is not None, reason=_missing() or "")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Yield a Playwright ``Browser``; it takes a second to start, so that the tests of a module share one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
