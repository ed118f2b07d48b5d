"""The table of a ranking shows its notes whole, and is a data frame in all else."""

from __future__ import annotations

import pandas as pd
from cases.rankings import linear_state, rank_lines

from ppl_fe.free_energy.ranking_table import RankingTable

LONG = (
    "off its minimum: the chains went below L(w*) = 0.1 to 0.05, so λ̂ < 0 and WBIC is little <more>"
)


def table() -> RankingTable:
    rows = {"wbic": [1.0, float("nan")], "note": [LONG, ""], "error": ["", "no checkpoint at b"]}
    made = RankingTable(rows, index=pd.Index(["a", "b"], name="checkpoint"))
    made.attrs["read_first"] = "Lower WBIC is claimed to mean better transfer. " * 5
    return made


def test_notes_are_whole_and_what_is_to_be_read_stands_below() -> None:
    printed = repr(table())
    assert f"note: a: {LONG}" in printed
    assert "error: b: no checkpoint at b" in printed
    assert "Lower WBIC is claimed" in printed
    assert "—" in printed
    shown = table()._repr_html_()
    assert "so λ̂ &lt; 0 and WBIC is little &lt;more&gt;" in shown
    assert "Lower WBIC is claimed" in shown


def test_it_is_a_data_frame() -> None:
    found = table()
    assert isinstance(found, pd.DataFrame)
    part = found[found["error"] == ""]
    assert "note: a" in repr(part)
    assert part.attrs == found.attrs
    numbers = found[["wbic"]]
    assert repr(numbers) == repr(pd.DataFrame(numbers))
    pd.testing.assert_frame_equal(pd.DataFrame(found), pd.DataFrame(table()))


def test_a_ranking_is_one() -> None:
    found = rank_lines({"a": linear_state(0.0), "b": {}})
    assert isinstance(found, RankingTable)
    assert "error: b: " in repr(found)
    assert "Lower WBIC is claimed to mean better transfer." in repr(found)


def test_in_a_notebook_what_is_no_ranking_any_more_is_shown_as_pandas_does() -> None:
    numbers = table()[["wbic"]]
    assert numbers._repr_html_() == pd.DataFrame(numbers).to_html()
