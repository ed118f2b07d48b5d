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


def test_a_wide_table_is_printed_whole_and_its_recommendation_below() -> None:
    found = table()
    for k in range(20):
        found.insert(k, f"criterion_{k}", float(k))
    found.insert(20, "criterion_1_error", 0.25)
    found.attrs["recommendation"] = "Take 'a': of 2 checkpoints the best."
    printed = repr(found)
    numbers = printed.partition("note:")[0]
    assert all(f"criterion_{k} " in numbers for k in range(20))
    assert max(map(len, numbers.splitlines())) <= 100
    assert "..." not in numbers
    assert "1.000 ± 0.250" in numbers
    assert "criterion_1_error" not in numbers
    assert "criterion_1_error" in found
    assert printed.index("Take 'a'") < printed.index("Lower WBIC")
    assert "<p>Take &#x27;a&#x27;: of 2" in found._repr_html_()
