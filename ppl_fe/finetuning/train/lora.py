"""Low-rank adapters for comparison, by Hugging Face's peft, around a module's linear layers.

    W = W̄ + (α/r) B A,     A: (r, in), B: (out, r), B = 0 at the start, α = 2r

(Hu et al. 2021, arXiv:2106.09685.) Only A and B are trained; merged at the end they change every
entry of W, so a delta of the result holds whole matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppl_fe.finetuning.train.trained_entries import Entries
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import listed


def wrap(
    network: FlatNetwork, module: nn.Module, head: Sequence[str], rank: int, seed: int
) -> tuple[Tensor, Entries]:
    """Put adapters around every plain linear layer outside the head, in place.

    Args:
        network: whose vector the module's weights follow.
        module: changed in place.
        head: names of the head's parameters, which are trained as they are.
        rank: r, at least 1.
        seed: of A's start.

    Returns:
        (D,) bool, the entries of the wrapped weights; and what is to be trained.

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
    # Layers of exactly this class: of others (the output of nn.MultiheadAttention) the weight is
    # read without a call, and an adapter would do nothing.
    targets = [
        name
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear and f"{name}.weight" in network.slices
    ]
    targets = [name for name in targets if f"{name}.weight" not in head]
    fast = [name for name, layer in module.named_modules() if reads_weights(layer)]
    if fast:
        raise ValueError(
            f"method='lora': {listed(fast)} read their linear layers' weights without calling "
            "them, so that peft's adapters would not count; use method='mask' or 'full'"
        )
    if not targets or "" in targets:
        raise ValueError(
            f"method='lora': {type(module).__name__} has no nn.Linear among its layers outside "
            "the head that peft could wrap; use method='mask' or 'full'"
        )
    mask = torch.zeros_like(network.anchor, dtype=torch.bool)
    for name in targets:
        mask[network.slices[f"{name}.weight"]] = True
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, module)
    entries: dict[str, Tensor | None] = {
        name: None for name, _ in module.named_parameters() if ".lora_" in name
    }
    return mask, entries | dict.fromkeys(head)


def reads_weights(layer: nn.Module) -> bool:
    """Whether a layer's evaluation passes by the forward of linear layers below it."""
    return isinstance(layer, nn.TransformerEncoderLayer)


def unwrap(module: nn.Module) -> None:
    """Merge the adapters into the weights and give the linear layers their place back."""
    for name, layer in list(module.named_modules()):
        if hasattr(layer, "lora_A"):
            adapted: Any = layer
            adapted.merge()
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, adapted.get_base_layer())
