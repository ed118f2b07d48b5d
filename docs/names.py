"""A hook of mkdocs: where names and calls in the text may end a line, and where they may not.

The name of a test, longer than a line, may at a slash, a colon or an underscore, and a long call
after a bracket. A word with a hyphen, such as an option, may not.
"""

from __future__ import annotations

import re
from typing import Any

CODE = re.compile(r"(?<=<code>)[^<\n]+(?=</code>)")
TEST = re.compile(r"tests/\S*::\S*")
JOINT = re.compile(r"/|::|_(?=[^_])")
HYPHENATED = re.compile(r"(?<![\w/.-])[\w.]*-[\w.-]*\w")
BRACKET = re.compile(r"\((?=\w+\.)")
LONG = 40  # characters


def on_page_content(text: str, **_: Any) -> str:
    """HTML of a page -> the same with possible breaks in its code, and with words kept whole."""
    return CODE.sub(lambda found: _code(found[0]), text)


def _code(code: str) -> str:
    if TEST.fullmatch(code):
        return JOINT.sub(r"\g<0><wbr>", code)
    if len(code) > LONG:
        code = BRACKET.sub(r"\g<0><wbr>", code)
    return HYPHENATED.sub(r'<span class="whole">\g<0></span>', code)
