"""Draws whose settings or statistics were taken away or changed: one error that names them."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import xarray as xr
from cases.runs import gaussian, run

import ppl_fe as fe
from ppl_fe.diagnostics.settings import NUMBERS, TOGETHER

TUNED = ("tuned_step_size", "tuned_excess_temperature", "tuned_relaxation_steps", *TOGETHER)


@pytest.fixture(scope="module")
def draws() -> xr.DataTree:
    return run(fe.BAOAB(gaussian), num_samples=40)


def changed(draws: xr.DataTree, **attributes: Any) -> xr.DataTree:
    tree = draws.copy()
    tree.attrs = dict(draws.attrs) | attributes
    tree.attrs = {name: value for name, value in tree.attrs.items() if value is not None}
    return tree


def test_a_setting_that_is_gone(draws: xr.DataTree) -> None:
    for name in (*NUMBERS, *chain.from_iterable(TOGETHER.values())):
        with pytest.raises(ValueError, match=rf"draws holds no {name}: only complete runs"):
            fe.diagnose(changed(draws, **{name: None}))


def test_a_setting_of_another_form(draws: xr.DataTree) -> None:
    odd: dict[str, list[Any]] = {
        **{name: ["x", [], {}, float("nan"), [1.0]] for name in (*NUMBERS, "tolerance")},
        **{name: ["x", [], {}, [1.0], 0.5] for name in TUNED},
        **{name: ["x", [], 3, "[]"] for name in ("failed_chains", "sites")},
    }
    for name, values in odd.items():
        for value in values:
            with pytest.raises(
                ValueError, match=rf"draws has {name}=.*was.* changed|{name}=.*were"
            ):
                fe.diagnose(changed(draws, **{name: value}))


def test_statistics_and_sites_that_are_gone(draws: xr.DataTree) -> None:
    for group, name, said in [
        *(("sample_stats", name, name) for name in ("loss", "lp", "gradient_norm", "step_size")),
        ("moments", "moment", "moment"),
        ("posterior", "w", "site"),
    ]:
        groups = {key: node.to_dataset() for key, node in draws.children.items()}
        groups[group] = groups[group].drop_vars(name)
        tree = xr.DataTree.from_dict(groups)
        tree.attrs = dict(draws.attrs)
        with pytest.raises(ValueError, match=rf"draws holds no {said}: only complete runs"):
            fe.diagnose(tree)
        if group == "posterior":
            with pytest.raises(ValueError, match="draws holds no values of any site"):
                fe.summary(tree)


def test_one_chain_comes_back_from_netcdf(draws: xr.DataTree, tmp_path: Any) -> None:
    """A file keeps lists of one as numbers."""
    alone = run(fe.BAOAB(gaussian), num_samples=40, num_chains=1)
    alone.to_netcdf(tmp_path / "a.nc")
    assert fe.diagnose(tmp_path / "a.nc").table.equals(fe.diagnose(alone).table)
