"""A real browser for the rendered pages: headless Chromium, cut off from every host but this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from pages import write_page
from playwright.sync_api import sync_playwright

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DARK_BOOK = "try { localStorage.mode = localStorage.theme = 'dark'; } catch (error) {}"


@dataclass
class Opened:
    """A page, and what went wrong in it."""

    page: object
    elsewhere: list[str] = field(default_factory=list)  # requests to other hosts; all are refused
    errors: list[str] = field(default_factory=list)  # page errors and console.error


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Start Chromium; without one, skip, except in CI, where its absence is a failure."""
    path = _chromium()
    if path is None:
        reason = "no Chromium found: install one, or name it in the environment variable CHROMIUM"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., Opened]]:
    """Open an address at a width, light or dark; script runs in the page before its own scripts do."""
    contexts = []

    def open_one(url: str, width: int = 1280, dark: bool = False, script: str = "") -> Opened:
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.add_init_script((DARK_BOOK if dark else "") + script)
        opened = Opened(context.new_page())
        context.route("**/*", lambda route: _only_here(route, opened.elsewhere))
        opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.page.on("console", lambda line: opened.errors.extend([line.text] * (line.type == "error")))
        opened.page.goto(url)
        return opened

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture
def shown(open_page, tmp_path) -> Callable[..., Opened]:
    """Write a page with one slider and open it; options go to `open_page`."""

    def show(slider: object, **options: object) -> Opened:
        opened = open_page(write_page(tmp_path, slider).as_uri(), **options)
        opened.page.locator(".vaelab-slider svg").first.wait_for()
        return opened

    return show


def _only_here(route, elsewhere: list[str]) -> None:
    address = urlsplit(route.request.url)
    if address.scheme in ("file", "blob", "data") or address.hostname in ("127.0.0.1", "localhost"):
        route.continue_()
    else:
        elsewhere.append(route.request.url)
        route.abort()
