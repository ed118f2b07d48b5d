"""Can I believe the sampler? Pictures of chains and of what was estimated from them."""

from __future__ import annotations

from ppl_fe.diagnostics.plots import plot_loss_traces, plot_transfer

__all__ = ["plot_loss_traces", "plot_transfer"]
