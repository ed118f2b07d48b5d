"""A hook of mkdocs: formulas become MathML, which browsers show without a script.

One on a line of its own is a `<div class="formula">`; where the screen is too narrow for it, its
parts between wide spaces (`\\qquad`) stand below each other.
"""

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
# A function's name stands apart from a factor before it, and without brackets from what follows.
NAME = "<mi>(log|exp|coth|det|max|min)</mi>"
FUNCTION = re.compile(rf"{NAME}(?!<mo[^>]*>&#x00028;)")
FACTOR = re.compile(
    rf"(</m(i|n|sub|sup|subsup|over|under|frac|sqrt)>|(&#x02202;|&#x02207;)</mo>)(?={NAME})"
)
# Only with braces does the letter become one that browsers know.
LETTER = re.compile(r"\\(mathcal|mathbb)\s*([A-Z])")
SPACE = "<mspace width='0.17em'></mspace>"
# Relations that are converted as letters, and signs that TeX sets closer.
AS_IN_TEX = {
    "<mi>&#x0007E;</mi>": "<mo>&#x0223C;</mo>",
    "<mi>&#x027F6;</mi>": "<mo>&#x027F6;</mo>",
    "<mi>&#x027F9;</mi>": "<mo>&#x027F9;</mo>",
    "<mo>&#x0002F;</mo>": '<mo lspace="0" rspace="0">&#x0002F;</mo>',
    '<mo stretchy="false">&#x0007C;</mo>': '<mo lspace="0" rspace="0" stretchy="false">|</mo>',
    "<mo>&#x0003D;</mo><mo>&#x02212;</mo>": '<mo>=</mo><mo form="prefix">&#x02212;</mo>',
}
ADJACENT = re.compile(r"\$\$\n(?=\$\$)")


def on_page_markdown(text: str, **_: Any) -> str:
    """Part formulas that follow each other: Markdown takes those of one paragraph for text."""
    return ADJACENT.sub("$$\n\n", text)


def on_page_content(text: str, page: Page, **_: Any) -> str:
    """HTML of a page -> the same with MathML for LaTeX, also in its table of contents."""
    for entry in _entries(page.toc):
        entry.title = IN_TITLE.sub(lambda found: _mathml(found[1], "inline"), entry.title)
    text = DISPLAY.sub(lambda found: _displayed(found[1]), text)
    return INLINE.sub(lambda found: _mathml(found[1], "inline"), text)


def _entries(links: Iterable[AnchorLink]) -> Iterator[AnchorLink]:
    for link in links:
        yield link
        yield from _entries(link.children)


def _displayed(latex: str) -> str:
    parts = latex.split(r"\qquad")
    if any(part.count("{") != part.count("}") or r"\begin" in part for part in parts):
        parts = [latex]
    return f'<div class="formula">{"".join(_mathml(part, "block") for part in parts)}</div>'


def _mathml(latex: str, display: str) -> str:
    made = str(convert(LETTER.sub(r"\\\1{\2}", html.unescape(latex)), display=display))
    made = FACTOR.sub(rf"\g<0>{SPACE}", FUNCTION.sub(rf"\g<0>{SPACE}", made))
    for converted, set_so in AS_IN_TEX.items():
        made = made.replace(converted, set_so)
    return made
