"""The columns that the criteria add to a row of the ranking."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ppl_fe.free_energy.baselines.features import last_linear, layer_inputs
from ppl_fe.free_energy.baselines.gaussian_perturbation import perturbed_loss
from ppl_fe.free_energy.baselines.geometric_complexity import geometric_complexity
from ppl_fe.free_energy.baselines.neural_collapse import neural_collapse
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.check_forward import try_inputs
from ppl_fe.networks.flat import FlatNetwork


def baseline_columns(
    network: FlatNetwork,
    data: tuple[Tensor, Tensor],
    layer: str | None = None,
    likelihood: str | Likelihood = ChainOptions.likelihood,
) -> dict[str, float]:
    """Compute the criteria of one checkpoint, the network's anchor.

    Args:
        network: the network.
        data: the pretraining inputs (N, ...) and targets (N, ...).
        layer: the module whose inputs are the features; by default the last linear layer.
        likelihood: of the perturbed loss, "categorical" by default.

    Returns:
        ``perturbed_loss``; ``geometric_complexity`` where inputs are floating; ``neural_collapse``
        where targets are integer classes.

    Raises:
        ValueError: as `last_linear`, `layer_inputs`, `geometric_complexity`, `neural_collapse`.

    Example:
        >>> from torch import nn
        >>> network = FlatNetwork(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        >>> data = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 5.0]]), torch.tensor([0, 0, 1])
        >>> sorted(baseline_columns(network, data))
        ['geometric_complexity', 'neural_collapse', 'perturbed_loss']
    """
    layer = last_linear(network) if layer is None else layer
    inputs, targets = data
    values: dict[str, float] = {}
    with torch.no_grad():
        try_inputs(partial(network, network.anchor), inputs[:1], network.dtype)
    if inputs.is_floating_point():
        values["geometric_complexity"] = geometric_complexity(
            network, network.anchor, inputs, layer
        )
    if not targets.is_floating_point() and targets.ndim == 1:
        with torch.no_grad():
            chunks = [
                layer_inputs(network, network.anchor, x, layer) for x in torch.split(inputs, 1024)
            ]
        values["neural_collapse"] = neural_collapse(torch.cat(chunks), targets)
    values["perturbed_loss"] = perturbed_loss(network, network.anchor, data, likelihood=likelihood)
    return values
