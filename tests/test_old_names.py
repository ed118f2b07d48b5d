"""Names of the last release still work, and warn with the new ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases.rankings import linear_state, rank_lines

from ppl_fe import diagnostics, plots
from ppl_fe.free_energy.estimate import FreeEnergyEstimate
from ppl_fe.renamed import old_names, renamed_arguments

EMPTY: Any = None


def test_the_number_of_data_of_an_estimate() -> None:
    numbers = {"wbic": 1.0, "wbic_mcse": 0.1, "llc": 1.0, "llc_mcse": 0.1, "anchor_loss": 0.5}
    settings = {"inverse_temperature": 0.2, "localization": 1.0, "step_size": 0.1}
    found = FreeEnergyEstimate(
        **numbers, **settings, num_data=7, r_hat=1.0, ess=400.0, notes=(), draws=EMPTY
    )
    with pytest.warns(DeprecationWarning, match="num_data"):
        assert found.n == 7


def test_arguments_of_a_ranking() -> None:
    with (
        pytest.warns(DeprecationWarning, match=r"rank_checkpoints\(baseline_columns=\)"),
        pytest.raises(ValueError, match="no linear submodule"),
    ):
        rank_lines({"a": linear_state(0.0)}, baseline_columns=True)
    states = {"a": {"0.weight": torch.zeros(1, 3)}}
    with pytest.raises(TypeError, match="features and its old name head"):
        rank_lines(states, head="0", features="0")


def test_plots_that_were_among_the_diagnostics() -> None:
    with pytest.warns(DeprecationWarning, match=r"ppl_fe\.plots\.plot_ranks"):
        assert diagnostics.plot_ranks is plots.plot_ranks  # type: ignore[attr-defined]
    for folder in (diagnostics, plots):
        with pytest.warns(DeprecationWarning, match="plot_selected_by_layer"):
            assert folder.plot_layers is plots.plot_selected_by_layer


def test_a_discrepancy_that_is_part_of_a_test_now() -> None:
    with pytest.warns(DeprecationWarning, match="kernel_stein_discrepancy"):
        assert callable(diagnostics.kernel_stein_discrepancy)  # type: ignore[attr-defined]


def test_a_warning_points_at_the_line_that_wrote_the_old_name() -> None:
    @renamed_arguments(old="new")
    def double(*, new: int) -> int:
        return 2 * new

    with pytest.warns(DeprecationWarning, match=r"double\(old=\) is called new=") as caught:
        assert double(old=2) == 4  # type: ignore[call-arg]
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="module 'here' has no attribute 'nothing'"):
        old_names("here", {})("nothing")
