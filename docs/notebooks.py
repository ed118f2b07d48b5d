"""A hook of mkdocs: every notebook of the repository becomes a page, outputs and pictures as kept.

The notebooks stay where they are; nothing is run. Their pages are Markdown like all others, so
formulas, code and search work the same. The gallery shows the first picture of each. Links to a
notebook lead to its file where a page is read in the repository, and to its page on the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from traitlets.config import Config

FOLDER = Path(__file__).parent.parent / "notebooks"
LINK = re.compile(r"\]\(\.\./\.\./((?:\.\./)?notebooks/\w+)\.ipynb")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the pages in the navigation, by the notebook's title."""
    pages = [{_title(path): f"notebooks/{path.stem}.md"} for path in sorted(FOLDER.glob("*.ipynb"))]
    for entry in config.nav or []:
        if "Notebooks" in entry:
            entry["Notebooks"] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages and the pictures on them."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        text, pictures = _convert(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{path.stem}/{name}", content=picture))
    return files


def on_page_markdown(text: str, page: Page, **_: Any) -> str:
    """Lead links to the notebooks' pages, and fill the gallery, a thumbnail a notebook."""
    text = LINK.sub(r"](\1.md", text)
    if page.file.src_uri != "gallery.md":
        return text
    shown = []
    for path in sorted(FOLDER.glob("*.ipynb")):
        _, pictures = _convert(path)
        for name in [*pictures][:1]:
            place = f"notebooks/{path.stem}"
            shown.append(_thumbnail(_title(path), f"{place}.md", f"{place}/{name}"))
    return text.replace("GALLERY", "\n".join(shown))


def _thumbnail(title: str, page: str, picture: str) -> str:
    return f"[![{title}]({picture})<br>{title}]({page})\n"


def _title(path: Path) -> str:
    first = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0]
    return str(first.removeprefix("# "))


def _convert(path: Path) -> tuple[str, dict[str, bytes]]:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = cell.source.replace("  # fmt: skip", "")
    exporter = MarkdownExporter(config=Config({"NbConvertBase": {"display_data_priority": SHOWN}}))
    resources: dict[str, Any] = {"output_files_dir": path.stem}
    text, made = exporter.from_notebook_node(notebook, resources=resources)
    pictures = {Path(name).name: picture for name, picture in made.get("outputs", {}).items()}
    return text, pictures


SHOWN = ["image/png", "text/html", "text/markdown", "text/plain"]
