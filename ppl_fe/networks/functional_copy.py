"""A copy of a module that torch.func can call: without compilers, stale values and fast paths."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def functional_copy(module: nn.Module) -> nn.Module:
    """Copy a module, in evaluation mode, so that `vmap` and `grad` go through it.

    - What `torch.compile` wrapped is taken out again, at any depth: the names are the module's own
      and the whole step is compiled later.
    - What the hooks of the older `weight_norm` and `spectral_norm` compute before each forward pass
      is left out, and what else the module keeps with a gradient is copied as a plain value: torch
      copies neither.
    - `nn.TransformerEncoder` without gradients packs padded rows into nested tensors, for which
      torch has no batching rule: this fast path is switched off.

    Args:
        module: any; it is not changed.

    Example:
        >>> module = nn.Sequential(nn.Linear(2, 1), nn.Dropout())
        >>> functional_copy(module).training, module.training
        (False, True)
    """
    computed: dict[int, Any] = {}
    for part in module.modules():
        hooked = {getattr(hook, "name", None) for hook in part._forward_pre_hooks.values()}
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and name in hooked:
                computed[id(value)] = torch.empty(0)
            elif isinstance(value, Tensor) and not value.is_leaf:
                computed[id(value)] = value.detach().clone()
    own = _uncompiled(copy.deepcopy(module, computed)).eval()
    for part in own.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.enable_nested_tensor = part.use_nested_tensor = False
    return own


BATCHED_IN_PARTS = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer)


def has_fused_layers(module: nn.Module) -> bool:
    """Say whether layers run as one kernel that torch cannot batch, but differentiates in parts.

    Recurrent layers have no batching rule at all, and the fast path of attention has a slow one,
    chain after chain.

    Example:
        >>> has_fused_layers(nn.Sequential(nn.GRU(2, 3))), has_fused_layers(nn.Linear(2, 3))
        (True, False)
    """
    return any(isinstance(part, BATCHED_IN_PARTS) for part in module.modules())


def logits_of(output: Any) -> Any:
    """Give the logits of an output that has some, as an attribute or a key; any other as it is.

    Example:
        >>> logits_of({"logits": 3, "hidden": 5}), logits_of(4)
        (3, 4)
    """
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    return getattr(output, "logits", output)


def _uncompiled(module: nn.Module) -> nn.Module:
    inner = module._modules.get("_orig_mod")
    if inner is not None and type(module).__name__ == "OptimizedModule":
        return _uncompiled(inner)
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = _uncompiled(child)
    if getattr(module, "_compiled_call_impl", None) is not None:  # by module.compile()
        module._compiled_call_impl = None
    return module
