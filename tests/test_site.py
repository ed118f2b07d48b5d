"""The site as a reader sees it: every page from disk in a browser, light and dark.

`make docs-test` builds it and runs this. Without a site, a driver or a browser it is skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).parent.parent / "build" / "site"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# What is seen of a page, without code, in which $ and \( may be meant.
PROSE = """() => {
    const seen = document.body.cloneNode(true);
    seen.querySelectorAll("pre, code, script, style, annotation").forEach(part => part.remove());
    return seen.textContent;
}"""
UNRENDERED = ("$$", "\\(", "\\[", "```", "](")
BROKEN_NAMES = """() => [...document.querySelectorAll("td code")]
    .filter(code => !/[\\s/(]/.test(code.textContent) && code.getClientRects().length > 1)
    .map(code => code.textContent)"""
BROKEN_WORDS = """() => [...document.querySelectorAll(".whole")]
    .filter(word => word.getClientRects().length > 1).map(word => word.textContent)"""
# Letters of an alphabet that browsers do not look up themselves: they would be common ones.
PLAIN_LETTERS = """() => [...document.querySelectorAll("mi[mathvariant]:not([mathvariant=normal])")]
    .map(letter => letter.outerHTML)"""
# How many pixels of a page are right of the screen: what is too wide has to scroll by itself.
OVERHANG = "document.documentElement.scrollWidth - window.innerWidth"
BLANK_PICTURES = """() => [...document.images]
    .filter(picture => !(picture.complete && picture.naturalWidth)).map(picture => picture.src)"""

pytestmark = pytest.mark.slow


def pages() -> list[Path]:
    found = sorted(path for path in SITE.rglob("*.html") if path.name != "404.html")
    if not found:
        pytest.skip(f"no site at {SITE}: `make docs` builds it")
    return found


class Links(HTMLParser):
    """Where a page leads, and the names that others can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names |= {name for key in ("id", "name") if (name := given.get(key))}
        for key in ("href", "src"):
            if link := given.get(key):
                self.links.append(link)


def test_every_link_leads_somewhere_and_nothing_is_fetched() -> None:
    parsed = {path: Links(path) for path in pages()}
    broken = []
    for path, page in parsed.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("data", "javascript", "mailto"):
                continue
            if parts.scheme:  # a reader may follow it; the page must not
                assert f'href="{link}"' in path.read_text(encoding="utf-8").replace("&amp;", "&")
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if place.is_dir():
                place /= "index.html"
            if not place.exists() or (
                place in parsed and unquote(parts.fragment) not in parsed[place].names
            ):
                broken.append((path.name, link))
    assert not broken


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="no playwright: make docs-test")
    found = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(
            f"no browser: none of {', '.join(BROWSERS)} is on the path, nor is BROWSER_PATH set; "
            "on Debian: apt-get install chromium"
        )
    with driver.sync_playwright() as started:
        running = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.parametrize(("colours", "scheme"), [("light", "default"), ("dark", "slate")])
def test_every_page_in_a_browser(browser: Any, colours: str, scheme: str) -> None:
    every = pages()
    view = browser.new_context(color_scheme=colours, viewport={"width": 1280, "height": 900})
    tab = view.new_page()
    tab.set_default_timeout(120_000)
    said: list[str] = []
    tab.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("requestfailed", lambda request: said.append(f"not found: {request.url}"))
    tab.on("request", lambda r: None if local(r.url) else said.append(f"fetched: {r.url}"))
    problems = {}
    for path in every:
        tab.goto(path.as_uri())
        tab.wait_for_load_state("load")
        prose = tab.evaluate(PROSE)
        found = [
            *(mark for mark in UNRENDERED if mark in prose),
            *tab.evaluate(BROKEN_NAMES),
            *tab.evaluate(BROKEN_WORDS),
            *tab.evaluate(PLAIN_LETTERS),
            *tab.evaluate(BLANK_PICTURES),
            *said,
        ]
        if tab.evaluate("document.body.dataset.mdColorScheme") != scheme:
            found.append("the wrong colours")
        if found:
            problems[path.relative_to(SITE).as_posix()] = found
        said.clear()
    view.close()
    assert not problems


def test_no_page_is_wider_than_a_phone(browser: Any) -> None:
    tab = browser.new_page(viewport={"width": 400, "height": 900})
    tab.set_default_timeout(120_000)
    wider = {}
    for path in pages():
        tab.goto(path.as_uri())
        if overhang := tab.evaluate(OVERHANG):
            wider[path.relative_to(SITE).as_posix()] = overhang
    tab.close()
    assert not wider


def local(address: str) -> bool:
    return address.startswith(("file:", "data:", "blob:", "about:"))


def test_the_search_works_from_disk(browser: Any) -> None:
    tab = browser.new_page()
    tab.set_default_timeout(120_000)
    pages()
    tab.goto((SITE / "index.html").as_uri())
    tab.fill("[data-md-component=search-query]", "posterior predictive", force=True)
    results = tab.locator(".md-search-result__item")
    results.first.wait_for(state="attached")
    assert "predictive" in " ".join(results.all_text_contents())
    tab.close()
