"""A hook of mkdocs: formulas become MathML, which browsers show without a script."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
IN_TITLE = re.compile(r"\\\((.*?)\\\)")
# A function's name without brackets stands apart from what follows it: "log n".
FUNCTION = re.compile(r"<mi>(log|exp|det|max|min)</mi>(?!<mo[^>]*>&#x00028;)")
ADJACENT = re.compile(r"\$\$\n(?=\$\$)")


def on_page_markdown(text: str, **_: Any) -> str:
    """Part formulas that follow each other: Markdown takes those of one paragraph for text."""
    return ADJACENT.sub("$$\n\n", text)


def on_page_content(text: str, page: Page, **_: Any) -> str:
    """HTML of a page -> the same with MathML for LaTeX, also in its table of contents."""
    for entry in _entries(page.toc):
        entry.title = IN_TITLE.sub(lambda found: _mathml(found[1], "inline"), entry.title)
    text = DISPLAY.sub(lambda found: _mathml(found[1], "block"), text)
    return INLINE.sub(lambda found: _mathml(found[1], "inline"), text)


def _entries(links: Iterable[AnchorLink]) -> Iterator[AnchorLink]:
    for link in links:
        yield link
        yield from _entries(link.children)


def _mathml(latex: str, display: str) -> str:
    made = str(convert(html.unescape(latex), display=display))
    return FUNCTION.sub(r"\g<0><mspace width='0.17em'></mspace>", made)
