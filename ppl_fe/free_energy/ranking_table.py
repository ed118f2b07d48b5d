"""The table of a ranking: a data frame that shows its notes whole, and what to read first."""

from __future__ import annotations

import textwrap
from html import escape

import pandas as pd

WIDTH = 100
SAID = ("note", "error")


class RankingTable(pd.DataFrame):
    """A `pandas.DataFrame` whose notes and errors are printed below it, none of them elided.

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
        numbers = self.drop(columns=[*SAID]).round(3).to_string(na_rep="—")
        read_first = textwrap.fill(self.attrs.get("read_first", ""), WIDTH)
        return "\n".join([numbers, "", *self._said(), *([read_first] if read_first else [])])

    def _repr_html_(self) -> str:
        if not {*SAID} <= {*self.columns}:
            return str(pd.DataFrame(self).to_html())
        numbers = self.drop(columns=[*SAID]).round(3).to_html(na_rep="—")
        said = "".join(f"<li>{escape(line)}</li>" for line in self._said())
        read_first = escape(self.attrs.get("read_first", ""))
        return f"{numbers}<ul>{said}</ul><p>{read_first}</p>"

    def _said(self) -> list[str]:
        """List the notes and errors, each with its checkpoint."""
        return [
            f"{column}: {name}: {text}"
            for column in SAID
            for name, text in zip(self.index, self[column], strict=True)
            if text
        ]
