"""The verdict as an object: what passes, how it prints, what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from cases.draws import draws_of
from cases.runs import gaussian, run

import ppl_fe as fe
from ppl_fe.diagnostics.checks.mixing import _worst
from ppl_fe.diagnostics.checks.single_chains import stuck_chains
from ppl_fe.diagnostics.checks.temperatures import _energy_balance
from ppl_fe.diagnostics.run_data import read_run

NAN = float("nan")
VERDICT = fe.Diagnosis(
    (
        fe.Check.below("r_hat", 1.002, 1.01, "raise num_samples"),
        fe.Check.above("ess_bulk", 30.0, 400.0, "raise <num_samples>"),
        fe.Check.within("temperature", 0.7, 1.0, 0.1, "too cold"),
    )
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "run.zarr"


@pytest.fixture(scope="module")
def draws(path: Path) -> xr.DataTree:
    return run(fe.BAOAB(gaussian, step_size=0.25, friction=2.0), num_samples=60, save_to=path)


@pytest.mark.parametrize("make", [fe.Check.below, fe.Check.above])
def test_what_is_not_a_number_never_passes(make: Any) -> None:
    for value, threshold in ((NAN, 1.0), (1.0, NAN), (NAN, NAN)):
        check = make("name", value, threshold, "advice")
        assert not check.passed
        assert check.advice == "advice"
    assert not fe.Check.within("name", NAN, 1.0, 0.1, "advice").passed
    assert not fe.Check.within("name", 1.0, 1.0, NAN, "advice").passed


def test_the_threshold_lies_on_the_value_s_side() -> None:
    cold, hot = (fe.Check.within("t", value, 1.0, 0.1, "") for value in (0.95, 1.2))
    assert (cold.threshold, cold.passed, cold.bound) == (0.9, True, "> 0.9")
    assert (hot.threshold, hot.passed, hot.bound) == (1.1, False, "< 1.1")


def test_the_table() -> None:
    assert not VERDICT.passed
    assert VERDICT.failures == ["ess_bulk", "temperature"]
    table = VERDICT.table
    assert list(table.columns) == ["check", "value", "threshold", "passed", "advice"]
    assert table["passed"].tolist() == [True, False, False]
    assert table["advice"].tolist() == ["", "raise <num_samples>", "too cold"]
    assert table.equals(VERDICT.to_dataframe())


def test_as_text_and_in_a_notebook() -> None:
    lines = str(VERDICT).splitlines()
    assert lines[0] == "Diagnosis: FAIL, 2 of 3 checks"
    assert lines[1].split() == ["r_hat", "1.002", "<", "1.01", "pass"]
    assert lines[2].split() == ["ess_bulk", "30", ">", "400", "FAIL", "raise", "<num_samples>"]
    html = VERDICT._repr_html_()
    assert html.count("<tr>") == 4
    assert "raise &lt;num_samples&gt;" in html
    assert str(fe.Diagnosis(VERDICT.checks[:1])).startswith("Diagnosis: pass, all 1 checks")


def test_a_note_does_not_fail() -> None:
    checks = VERDICT.checks
    noted = fe.Diagnosis((checks[0], checks[1].as_note(), checks[0].as_note()))
    assert noted.passed
    assert noted.failures == []
    assert noted.table["passed"].all()
    lines = str(noted).splitlines()
    assert lines[0] == "Diagnosis: pass, all 3 checks, 1 with a note"
    assert lines[2].split() == ["ess_bulk", "30", ">", "400", "note", "raise", "<num_samples>"]
    assert lines[3].split() == lines[1].split()
    assert "<td>note</td>" in noted._repr_html_()


def test_a_path_and_an_estimate_do_as_well(draws: xr.DataTree, path: Path) -> None:
    expected = str(fe.diagnose(draws))
    for given in (path, str(path), SimpleNamespace(draws=draws)):
        assert str(fe.diagnose(given)) == expected
        assert fe.summary(given).equals(fe.summary(draws))


def test_a_netcdf_file_does_as_well_and_no_other(draws: xr.DataTree, tmp_path: Path) -> None:
    draws.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    assert str(fe.diagnose(tmp_path / "run.nc")) == str(fe.diagnose(draws))
    (tmp_path / "other.nc").write_text("no draws")
    with pytest.raises(ValueError, match=r"other\.nc is no netCDF file that xarray can read"):
        fe.diagnose(tmp_path / "other.nc")


def test_the_summary_has_arviz_columns(draws: xr.DataTree) -> None:
    table = fe.summary(draws)
    assert list(table.index) == ["w[0]", "w[1]", "w[2]"]
    assert {"mean", "sd", "ess_bulk", "r_hat"} <= set(table.columns)


def test_what_no_draw_changes_has_no_r_hat_and_warns_of_nothing(draws: xr.DataTree) -> None:
    changed = draws.copy(deep=True)
    posterior = changed["posterior"].to_dataset()
    posterior["w"][..., 0] = 0.0
    changed["posterior"] = posterior
    table = fe.summary(changed)  # any warning would be an error
    assert np.isnan(table["r_hat"].iloc[0])
    assert table["r_hat"].iloc[1:].notna().all()
    assert fe.diagnose(changed).table["value"].notna().all()


def without(draws: xr.DataTree, change: str) -> Any:
    changed = draws.copy(deep=True)
    if change == "group":
        del changed["sample_stats"]
    elif change == "loss":
        changed["sample_stats"] = changed["sample_stats"].to_dataset().drop_vars("loss")
    elif change == "temperature":
        changed.attrs["temperature"] = 0.0
    elif change == "targets":
        changed.attrs["num_groups"] = 2
    elif change == "draws":
        return shortened(changed, 11)
    return changed


def shortened(draws: xr.DataTree, length: int) -> xr.DataTree:
    groups = {
        name: draws[name].to_dataset().isel(draw=slice(0, length))
        for name in ("posterior", "sample_stats")
    }
    tree = xr.DataTree.from_dict({**groups, "moments": draws["moments"].to_dataset()})
    tree.attrs.update(draws.attrs)
    return tree


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("group", "draws has no group sample_stats"),
        ("loss", "draws holds no loss"),
        ("temperature", "temperature=0 descends"),
        ("targets", "2 targets side by side.*group=0 to 1, got None"),
        ("draws", "11 draws a chain, and 12 are the least.*raise num_samples"),
    ],
)
def test_what_cannot_be_diagnosed(draws: xr.DataTree, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fe.diagnose(without(draws, change))


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"draws must be what fe\.sample returned.*got dict"):
        fe.diagnose({"loss": 1})
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        fe.diagnose(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no zarr folder"):
        fe.summary(tmp_path)


def test_the_least_number_of_draws_gives_a_verdict(draws: xr.DataTree) -> None:
    verdict = fe.diagnose(shortened(draws, 12))
    assert "ess_bulk" in verdict.failures
    assert "interrupted" not in verdict.failures  # shortened on purpose


def test_targets_side_by_side_are_judged_apart(draws: xr.DataTree) -> None:
    two = draws.copy(deep=True)
    two.attrs.update(num_groups=2, num_data=1, anchor_loss=[-5.0, 5.0])
    two.attrs["inverse_temperature"] = [1.0, 1.0, 0.5, 0.5]
    moments = two["moments"].to_dataset()
    two["moments"] = xr.concat([moments, moments], "group")
    posterior = two["posterior"].to_dataset()
    posterior["w"][2:] += 100.0
    two["posterior"] = posterior
    for group in (0, 1):
        assert "chain_apart" not in fe.diagnose(two, group=group).failures
        found = fe.diagnose(two, group=group).table.set_index("check")["value"]
        assert found["below_anchor"] == (5.0, -2.5)[group]  # the loss is zero: there are no data
    with pytest.raises(ValueError, match="got 2"):
        fe.diagnose(two, group=2)
    assert np.isfinite(fe.diagnose(two, group=1).table["value"]).all()


def lacking(draws: xr.DataTree, name: str) -> xr.DataTree:
    left = draws.copy()
    left["sample_stats"] = xr.DataTree(draws["sample_stats"].to_dataset().drop_vars(name))
    return left


@pytest.mark.parametrize("name", ["loss", "block"])
def test_draws_that_lack_something_say_what(name: str) -> None:
    with pytest.raises(ValueError, match=f"no {name}"):
        read_run(lacking(draws_of(), name))


def test_a_group_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="draws have no group 'postreior'; did you mean 'poster"):
        fe.summary(draws_of(), group="postreior")


def test_a_target_whose_chains_all_failed_is_said_to_have_none() -> None:
    of_two = draws_of(num_groups=2)
    left = xr.DataTree.from_dict(
        {name: node.to_dataset().isel(chain=slice(0, 2)) for name, node in of_two.children.items()
         if name != "moments"}
    )  # fmt: skip
    left.attrs = of_two.attrs
    with pytest.raises(ValueError, match="group=1: none of its 2 chains stayed finite"):
        read_run(left, group=1)


def test_chains_of_which_one_alone_moves() -> None:
    """The others stand still: what moves is unlike them, and a scalar that stands has no R-hat."""
    draws = draws_of()
    held = draws["posterior"].to_dataset()
    held["w"][1:] = 0.5
    draws["posterior"] = xr.DataTree(held)
    run = read_run(draws)
    stuck = stuck_chains(run)
    assert stuck is not None
    assert (stuck.value, stuck.passed) == (0.0, False)
    assert stuck.advice.startswith("chain 1 hardly moves")


def test_a_scalar_without_a_number_is_the_worst_and_what_stands_still_is_said() -> None:
    draws = draws_of()
    posterior = draws["posterior"].to_dataset()
    posterior["w"][..., 3] = np.arange(4)[:, None]  # no chain of it moves
    draws["posterior"] = xr.DataTree(posterior)
    worst, label = _worst(read_run(draws), lambda trace: float(trace.var(axis=1).min()) or NAN, -1)
    assert np.isnan(worst)
    assert label == "w[3]"
    still = draws_of(np.ones((4, 100)))
    still["sample_stats"] = still["sample_stats"].to_dataset().assign(lp=still["sample_stats"].loss)
    still["posterior"] = xr.DataTree(xr.zeros_like(still["posterior"].to_dataset()))
    assert _worst(read_run(still), float, 1)[1] == "nothing moves"


def test_plain_sgld_without_moments_has_no_balance_of_energy() -> None:
    draws = draws_of(sampler="SGLD", metric="identity")
    stats = draws["sample_stats"].to_dataset()
    draws["sample_stats"] = stats.assign(gradient_norm=10 * xr.ones_like(stats["loss"]))
    steps = 0.01 * 10**2 / (4 * 10)  # step size, squared norm, four times ten coordinates
    assert _energy_balance(read_run(draws)) == pytest.approx(steps)
    del draws["moments"]
    assert _energy_balance(read_run(draws)) is None
