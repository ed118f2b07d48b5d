"""Can I believe the sampler? A verdict, and pictures of chains and of what comes of them."""

from __future__ import annotations

from ppl_fe.diagnostics.diagnosis import Check, Diagnosis
from ppl_fe.diagnostics.ladder_plots import plot_ladder
from ppl_fe.diagnostics.layer_plots import plot_r_hat_by_layer, plot_temperature_by_layer
from ppl_fe.diagnostics.loss_plots import plot_loss_traces
from ppl_fe.diagnostics.pointwise import add_log_likelihood
from ppl_fe.diagnostics.rank_plots import plot_ranks
from ppl_fe.diagnostics.scale_plots import plot_layers, plot_ranked_scales
from ppl_fe.diagnostics.stein import (
    SteinTest,
    kernel_stein_discrepancy,
    stein_check,
    stein_test,
)
from ppl_fe.diagnostics.step_plots import plot_temperature_against_step
from ppl_fe.diagnostics.transfer_plots import plot_transfer
from ppl_fe.diagnostics.verdict import diagnose, summary

__all__ = [
    "Check",
    "Diagnosis",
    "SteinTest",
    "add_log_likelihood",
    "diagnose",
    "kernel_stein_discrepancy",
    "plot_ladder",
    "plot_layers",
    "plot_loss_traces",
    "plot_r_hat_by_layer",
    "plot_ranked_scales",
    "plot_ranks",
    "plot_temperature_against_step",
    "plot_temperature_by_layer",
    "plot_transfer",
    "stein_check",
    "stein_test",
    "summary",
]
