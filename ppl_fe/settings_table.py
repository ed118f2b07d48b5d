"""A small table of settings, as notebooks show it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def settings_table(caption: str, rows: Iterable[tuple[str, object]]) -> str:
    """Make HTML of two columns, names and values, all of it escaped.

    It sets no colour, so that a notebook shows it in its own, light or dark.

    Args:
        caption: above the table.
        rows: a name and a value each; of a value its `str` is shown.

    Example:
        >>> settings_table("SGLD", [("step_size", "<auto>")])
        '<table><caption>SGLD</caption><tr><th>step_size</th><td>&lt;auto&gt;</td></tr></table>'
    """
    cells = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows
    )
    return f"<table><caption>{escape(caption)}</caption>{cells}</table>"
