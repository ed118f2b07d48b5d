"""The table of a ranking: a data frame that shows its notes whole, and what to read first."""

from __future__ import annotations

import textwrap
from html import escape

import pandas as pd

WIDTH = 100
SAID = ("note", "error")


class RankingTable(pd.DataFrame):
    """A `pandas.DataFrame` that is printed whole, its notes and errors below it.

    A number and its `_error` are one column there, and what a line has no room for follows below.
    What `attrs` recommend, and what is to be read first, comes last.

    In all else it is a data frame: columns, `attrs`, files. What is made of it without the columns
    `note` and `error` is shown as pandas shows it.

    Example:
        >>> table = RankingTable({"wbic": [1.0], "note": ["off its minimum"], "error": ""}, ["a"])
        >>> print(table)
           wbic
        a   1.0
        <BLANKLINE>
        note: a: off its minimum
    """

    @property
    def _constructor(self) -> type[RankingTable]:
        return RankingTable

    def __repr__(self) -> str:
        if not {*SAID} <= {*self.columns}:
            return str(pd.DataFrame(self).__repr__())
        numbers = self._shown().to_string(na_rep="—", line_width=WIDTH)
        advice = [textwrap.fill(text, WIDTH) for text in self._advice()]
        return "\n".join([numbers, "", *self._said(), *advice])

    def _repr_html_(self) -> str:
        if not {*SAID} <= {*self.columns}:
            return str(pd.DataFrame(self).to_html())
        numbers = self._shown().to_html(na_rep="—")
        said = "".join(f"<li>{escape(line)}</li>" for line in self._said())
        advice = "".join(f"<p>{escape(text)}</p>" for text in self._advice())
        return f"{numbers}<ul>{said}</ul>{advice}"

    def _shown(self) -> pd.DataFrame:
        """Make the table of the numbers, a column and its `_error` as one."""
        numbers = pd.DataFrame(self).drop(columns=[*SAID]).round(3)
        for name in [name for name in numbers.columns if f"{name}_error" in numbers.columns]:
            errors = numbers.pop(f"{name}_error")
            pairs = zip(numbers[name], errors, strict=True)
            numbers[name] = [_with_error(value, error) for value, error in pairs]
        return numbers

    def _advice(self) -> list[str]:
        """List what the table recommends and what is to be read first, where it has them."""
        texts = (self.attrs.get(name, "") for name in ("recommendation", "read_first"))
        return [text for text in texts if text]

    def _said(self) -> list[str]:
        """List the notes and errors, each with its checkpoint."""
        return [
            f"{column}: {name}: {text}"
            for column in SAID
            for name, text in zip(self.index, self[column], strict=True)
            if text
        ]


def _with_error(value: float, error: float) -> str:
    """Write a number with its error bar.

    Example:
        >>> _with_error(0.5, 0.01), _with_error(0.5, float("nan")), _with_error(float("nan"), 0.1)
        ('0.500 ± 0.010', '0.500', '—')
    """
    if pd.isna(value):
        return "—"
    return f"{value:.3f}" if pd.isna(error) else f"{value:.3f} ± {error:.3f}"
