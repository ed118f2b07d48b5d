"""All pictures, and their style."""

from __future__ import annotations

from ppl_fe.plots.ladder_plots import plot_ladder
from ppl_fe.plots.layer_plots import plot_r_hat_by_layer, plot_temperature_by_layer
from ppl_fe.plots.loss_plots import plot_loss_traces
from ppl_fe.plots.rank_plots import plot_ranks
from ppl_fe.plots.selection_plots import plot_layers, plot_ranked_scales
from ppl_fe.plots.temperature_plots import plot_temperature_against_step
from ppl_fe.plots.transfer_plots import plot_transfer

__all__ = [
    "plot_ladder",
    "plot_layers",
    "plot_loss_traces",
    "plot_r_hat_by_layer",
    "plot_ranked_scales",
    "plot_ranks",
    "plot_temperature_against_step",
    "plot_temperature_by_layer",
    "plot_transfer",
]
