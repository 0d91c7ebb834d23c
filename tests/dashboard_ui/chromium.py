"""Debian's Chromium, driven by Playwright; nothing is fetched when it runs."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

FOLDER = Path(__file__).parent
NODE_MODULES = FOLDER / "node_modules"
AXE = NODE_MODULES / "axe-core" / "axe.min.js"
needs_axe = pytest.mark.skipif(
    not AXE.exists(), reason="needs axe: npm ci --prefix tests/dashboard_ui --ignore-scripts"
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def chromium_path() -> str | None:
    """Return the browser of this machine."""
    return next((found for found in map(shutil.which, _NAMES) if found), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """Yield a Chromium."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path(), args=_ARGUMENTS)
        yield chromium
        chromium.close()
