"""The part of a network that may be chosen from, as a network of its own, and back again.

A rule sees a shorter vector: the parameters that may be chosen, and the head. All others stay at
their pretrained values, as they will in training, and cost a rule neither time nor memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ppl_fe.finetuning.scoring import Scores
from ppl_fe.finetuning.train.trained_entries import module_at
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.parameter_names import Parameters, chosen_names


def part_of(network: FlatNetwork, parameters: Parameters, head: Sequence[str]) -> FlatNetwork:
    """Give the network whose vector holds the parameters that may be chosen, and the head.

    Args:
        network: all of it.
        parameters: names, patterns, "linear" or a predicate; None gives the network itself.
        head: names of the fresh head's tensors.

    Raises:
        ValueError: a name or pattern that matches nothing, or nothing outside the head.

    Example:
        >>> import torch
        >>> network = FlatNetwork(torch.nn.Linear(2, 1))
        >>> part_of(network, "bias", []).names
        ('bias',)
    """
    if parameters is None:
        return network
    chosen = chosen_names(network.module, parameters) & set(network.names)
    if chosen <= set(head):
        raise ValueError(
            f"parameters={parameters!r} chooses nothing of the network's vector outside the head"
        )
    names = [name for name in network.names if name in chosen or name in head]
    return FlatNetwork(module_at(network, network.anchor), names, network.autocast)


def in_whole(scores: Scores, part: FlatNetwork, network: FlatNetwork) -> Scores:
    """Give the scores of a part as those of the whole network, NaN elsewhere.

    Example:
        >>> import torch
        >>> network = FlatNetwork(torch.nn.Linear(2, 1))
        >>> in_whole(Scores(torch.ones(1)), part_of(network, "bias", []), network).score
        tensor([nan, nan, 1.])
    """
    if part is network:
        return scores
    vectors: dict[str, Any] = {
        name: _spread(value, part, network, float("nan"))
        for name, value in scores._asdict().items()
        if isinstance(value, Tensor)
    }
    return scores._replace(**vectors)


def mask_in_whole(mask: Tensor, part: FlatNetwork, network: FlatNetwork) -> Tensor:
    """Give the mask of a part as that of the whole network, False elsewhere."""
    return mask if part is network else _spread(mask, part, network, False)


def _spread(values: Tensor, part: FlatNetwork, network: FlatNetwork, other: Any) -> Tensor:
    whole = values.new_full((network.num_parameters,), other)
    for name, where in part.slices.items():
        whole[network.slices[name]] = values[where]
    return whole


def in_words(parameters: Parameters) -> str | list[str] | None:
    """Say what was asked for as JSON can, a predicate by its name.

    Example:
        >>> in_words(("linear", "*.bias"))
        ['linear', '*.bias']
    """
    if parameters is None or isinstance(parameters, str):
        return parameters
    return getattr(parameters, "__name__", "a predicate") if callable(parameters) else [*parameters]
