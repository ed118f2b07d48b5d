"""Which of a module's parameters make up the vector, and whether they can."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ppl_fe.networks.matching import listed, tied_names


def chosen_names(
    module: nn.Module, parameters: Iterable[str] | Callable[[str], bool] | None
) -> set[str]:
    """The parameters meant by names (any of a tied one's), by a predicate, or all.

    Raises:
        ValueError: unknown names, or none chosen.
        TypeError: a single string.
    """
    own = {name for name, _ in module.named_parameters()}
    first = {name: to for name, to in tied_names(module).items() if to in own}
    if parameters is None:
        return own
    if isinstance(parameters, str):
        raise TypeError(f"parameters must be several names or a predicate; pass [{parameters!r}]")
    if callable(parameters):
        names = [name for name in first if parameters(name)]
    else:
        names = list(parameters)
        unknown = [name for name in names if name not in first]
        if unknown:
            raise ValueError(
                f"parameters names {len(unknown)} that the module has not: {listed(unknown)}; "
                f"it has: {listed(list(first))}"
            )
    if not names:
        raise ValueError(f"parameters chooses none of: {listed(list(first))}")
    return {first[name] for name in names}


def check_tensors(module: nn.Module, chosen: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit in one vector of finite floating-point numbers.

    Raises:
        ValueError: what is wrong, and in which tensors.
    """
    everything = dict(module.named_parameters()) | dict(module.named_buffers())
    empty = [name for name, tensor in everything.items() if is_lazy(tensor) or tensor.is_meta]
    if empty:
        raise ValueError(
            f"tensors without values yet (lazy or meta): {listed(empty)}; "
            "materialise them, for lazy modules by one forward pass, before FlatNetwork"
        )
    other = [f"{n} ({t.dtype})" for n, t in chosen.items() if not t.is_floating_point()]
    if other:
        raise ValueError(
            f"parameters that are not real floating point: {listed(other)}; "
            "leave them out by `parameters`"
        )
    kinds: dict[str, list[str]] = {}
    for name, tensor in chosen.items():
        kinds.setdefault(f"{tensor.dtype} on {tensor.device}", []).append(name)
    if len(kinds) > 1:
        groups = "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items())
        raise ValueError(f"parameters differ in dtype or device, one vector needs one: {groups}")
    bad = [name for name, tensor in module.named_parameters() if not torch.isfinite(tensor).all()]
    # Infinity is legitimate in a buffer, an attention mask for one; NaN never is.
    bad += [name for name, tensor in module.named_buffers() if torch.isnan(tensor).any()]
    if bad:
        raise ValueError(f"weights or buffers with NaN or infinite values: {listed(bad)}")
