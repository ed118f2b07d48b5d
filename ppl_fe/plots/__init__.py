"""All pictures, and their style.

rank_plots.py         do all chains draw from one law
loss_plots.py         has the loss levelled off
layer_plots.py        R-hat and temperature by layer
temperature_plots.py  temperature against step size, measured and predicted
ladder_plots.py       the ladder of thermodynamic integration
selection_plots.py    which parameters were selected
transfer_plots.py     a criterion against how well checkpoints transferred
palette.py            the style of them all
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppl_fe.plots.ladder_plots import plot_ladder
from ppl_fe.plots.layer_plots import plot_r_hat_by_layer, plot_temperature_by_layer
from ppl_fe.plots.loss_plots import plot_loss_traces
from ppl_fe.plots.rank_plots import plot_ranks
from ppl_fe.plots.selection_plots import plot_ranked_scales, plot_selected_by_layer
from ppl_fe.plots.temperature_plots import plot_temperature_against_step
from ppl_fe.plots.transfer_plots import plot_transfer
from ppl_fe.renamed import old_names

__all__ = [
    "plot_ladder",
    "plot_loss_traces",
    "plot_r_hat_by_layer",
    "plot_ranked_scales",
    "plot_ranks",
    "plot_selected_by_layer",
    "plot_temperature_against_step",
    "plot_temperature_by_layer",
    "plot_transfer",
]

if not TYPE_CHECKING:
    __getattr__ = old_names(__name__, {"plot_layers": "ppl_fe.plots:plot_selected_by_layer"})
