"""Can I believe the sampler? A verdict, and the checks behind it.

diagnose_run.py  all checks of a run in one call
diagnosis.py     the verdict: checks with values, thresholds, advice
checks/          the checks, by what they look at
run_data.py      what a run's draws carry
settings.py      the attributes among it, held against what is written
error_bars.py    Monte Carlo errors, and how many of them are too many
stein.py         draws against the scores of their density
scores.py        those scores, on all the data
pointwise.py     log-likelihoods of single data, for ArviZ
predictive.py    data that a program makes, under its posterior and its prior
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppl_fe.diagnostics.diagnose_run import diagnose, summary
from ppl_fe.diagnostics.diagnosis import Check, Diagnosis
from ppl_fe.diagnostics.pointwise import add_log_likelihood
from ppl_fe.diagnostics.predictive import add_posterior_predictive, prior_predictive
from ppl_fe.diagnostics.stein import SteinTest, stein_check, stein_test
from ppl_fe.renamed import old_names

__all__ = [
    "Check",
    "Diagnosis",
    "SteinTest",
    "add_log_likelihood",
    "add_posterior_predictive",
    "diagnose",
    "prior_predictive",
    "stein_check",
    "stein_test",
    "summary",
]

# The plots are on the floor above now.
_PLOTS = (
    "plot_ladder",
    "plot_loss_traces",
    "plot_r_hat_by_layer",
    "plot_ranked_scales",
    "plot_ranks",
    "plot_temperature_against_step",
    "plot_temperature_by_layer",
    "plot_transfer",
)
if not TYPE_CHECKING:
    __getattr__ = old_names(
        __name__,
        {name: f"ppl_fe.plots:{name}" for name in _PLOTS}
        | {
            "plot_layers": "ppl_fe.plots:plot_selected_by_layer",
            "kernel_stein_discrepancy": "ppl_fe.diagnostics.stein:kernel_stein_discrepancy",
        },
    )
