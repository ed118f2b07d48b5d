"""Runs the programs of `five_programs.md` and keeps their pictures beside the page.

python docs/pictures.py [pumps stackloss trees petals horseshoe]
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent / "pages"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def programs() -> dict[str, str]:
    """Give each program of the page by its name, as it stands there without the imports."""
    _, *blocks = BLOCK.findall((PAGES / "five_programs.md").read_text(encoding="utf-8"))
    return {re.findall(r"^def (\w+)", block, re.MULTILINE)[0]: block for block in blocks}


def run(name: str, folder: Path) -> dict[str, Any]:
    """Run one where the page's data are, and save its picture in a folder.

    Returns:
        What it has defined, `draws` among it.
    """
    imports, *_ = BLOCK.findall((PAGES / "five_programs.md").read_text(encoding="utf-8"))
    code = programs()[name].replace('savefig("', f'savefig("{folder.resolve()}{os.sep}')
    found: dict[str, Any] = {}
    with chdir(PAGES / "data"):
        exec(imports + code, found)
    found["plt"].close("all")
    return found


def main(names: list[str]) -> None:
    import ppl_fe as fe

    folder = PAGES / "pictures"
    folder.mkdir(exist_ok=True)
    for name in names or programs():
        draws = run(name, folder)["draws"]
        print(name, fe.summary(draws).round(3).to_string(), fe.diagnose(draws), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
