"""Low-rank adapters for comparison, by Hugging Face's peft, around a module's linear layers.

    W = W̄ + (α/r) B A,     A: (r, in), B: (out, r), B = 0 at the start, α = 2r

(Hu et al. 2021, arXiv:2106.09685.) Only A and B are trained. Merged at the end they change every
entry of W, so that a delta of the result holds whole matrices; `fe.save_adapter` writes A and B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppl_fe.finetuning.train.trained_entries import Entries
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import listed
from ppl_fe.networks.parameter_names import Parameters, chosen_names, linear_weights, reads

ALPHA_OVER_RANK = 2


def wrap(
    network: FlatNetwork,
    module: nn.Module,
    head: Sequence[str],
    parameters: Parameters,
    rank: int,
    seed: int,
) -> tuple[Tensor, Entries]:
    """Put adapters around plain linear layers outside the head, in place.

    Args:
        network: the network whose vector the module's weights follow.
        module: the module to change.
        head: names of the head's parameters, which are trained as they are.
        parameters: which of the linear layers' weights get an adapter; None for all of them.
        rank: r, at least 1.
        seed: seed of A's random start.

    Returns:
        (D,) bool, the entries of the wrapped weights; and the entries to train.

    Raises:
        ImportError: peft is not installed.
        ValueError: no layer that peft can wrap; a rank below one.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("method='lora' needs peft: pip install peft") from error
    if rank < 1:
        raise ValueError(f"lora_rank must be at least 1, got {rank}")
    chosen = chosen_names(module, parameters) & set(network.names) - set(head)
    fast = [name for name, part in module.named_modules() if reads(part)]
    fast = [name for name in fast if any(one.startswith(f"{name}.") for one in chosen)]
    if fast:
        raise ValueError(
            f"method='lora': {listed(fast)} read their linear layers' weights without calling "
            "them, so that peft's adapters would not count; use method='mask' or 'full'"
        )
    weights = [name for name in linear_weights(module) if name in chosen]
    if not weights or "weight" in weights:
        raise ValueError(
            f"method='lora': {type(module).__name__} has no nn.Linear among its layers outside "
            "the head that peft could wrap; use method='mask' or 'full'"
            if parameters is None
            else f"method='lora': parameters={parameters!r} holds no weight of an nn.Linear "
            "outside the head that peft could wrap"
        )
    targets = [name.removesuffix(".weight") for name in weights]
    mask = torch.zeros_like(network.anchor, dtype=torch.bool)
    for name in weights:
        mask[network.slices[name]] = True
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA_OVER_RANK * rank, target_modules=targets)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, module)
    entries: dict[str, Tensor | None] = {
        name: None for name, _ in module.named_parameters() if ".lora_" in name
    }
    return mask, entries | dict.fromkeys(head)


def unwrap(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Merge the adapters into the weights and put the linear layers back in their place.

    Returns:
        Layer -> (A, B).
    """
    adapters: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in list(module.named_modules()):
        if hasattr(layer, "lora_A"):
            adapted: Any = layer
            parts = (adapted.lora_A, adapted.lora_B)
            a, b = (next(iter(part.values())).weight for part in parts)
            adapters[name] = (a.detach().clone(), b.detach().clone())
            adapted.merge()
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, adapted.get_base_layer())
    return adapters
