"""The entries of a state dict under a module's own names: prefixes, ties, shapes, one error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ppl_fe.networks.hub_names import advice, is_rebuilt

SHOWN = 10


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the network.

    Example:
        >>> issubclass(CheckpointError, ValueError)
        True
    """


def listed(names: Sequence[str]) -> str:
    """Join names for a message; a long list is cut after ten, its count stays exact.

    Example:
        >>> listed(["a", "b"])
        'a, b'
        >>> listed([str(i) for i in range(12)])
        '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more'
    """
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def tied_names(module: nn.Module) -> dict[str, str]:
    """Map every name of a parameter or buffer to the first name of the same tensor.

    Args:
        module: its tied tensors are those that are one object under several names.

    Returns:
        A name of every parameter and buffer -> the name under which
        ``named_parameters()`` or ``named_buffers()`` lists it.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> tied_names(nn.ModuleDict({"a": layer, "b": layer}))
        {'a.weight': 'a.weight', 'b.weight': 'a.weight'}
    """
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in _all_tensors(module)}


def is_counter(tensor: Tensor) -> bool:
    """Say whether a buffer is an integer scalar, as ``num_batches_tracked``: no part of f(w, x).

    Example:
        >>> is_counter(torch.tensor(3)), is_counter(torch.tensor([True, False]))
        (True, False)
    """
    return tensor.ndim == 0 and not (tensor.is_floating_point() or tensor.is_complex())


def match_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str = "the state dict",
    head: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Give the entries of a state dict under the module's own names, in its dtypes.

    A prefix common to all names (``module.``, ``model.``) and the ``_orig_mod.`` of compiled
    modules are taken off, and the name of one of the module's children (``transformer.`` for a
    file of the base model) is put before all names, only where that makes the names match. One
    name of a tied tensor is enough. Parameters and persistent buffers must all be there;
    non-persistent buffers and integer counters may be absent. Constants that old files store and
    the module builds (`is_rebuilt`) are left out.

    Args:
        module: the network whose names, shapes, dtypes and devices decide. Not changed.
        state: name -> tensor.
        source: what the error message calls the state dict, "the state dict" by default.
        head: names of a fresh head's tensors, none by default, which are neither required nor
            taken: a checkpoint may lack them, or hold those of another task in other shapes.

    Returns:
        The module's name (the first one of a tied tensor) -> tensor.

    Raises:
        CheckpointError: names missing or unexpected, shapes that differ, tied names that hold
            different values, entries of another kind, NaN or infinite values; all in one message.

    Example:
        >>> state = {"module.weight": torch.ones(1, 2), "module.bias": torch.zeros(1)}
        >>> sorted(match_state(nn.Linear(2, 1), state))
        ['bias', 'weight']
    """
    own = dict(_all_tensors(module))
    first = tied_names(module)
    parameters = {name for name, _ in module.named_parameters()}
    persistent = set(module.state_dict())
    required = {
        first[name]
        for name, tensor in own.items()
        if first[name] in parameters or (name in persistent and not is_counter(tensor))
    } - set(head)

    def misfits(renamed: Mapping[str, str]) -> tuple[list[str], list[str]]:
        present = {first[new] for new in renamed if new in first}
        missing = [name for name in own if name in required - present]
        return missing, [
            old for new, old in renamed.items() if new not in first and old not in rebuilt
        ]

    rebuilt = {name for name, entry in state.items() if is_rebuilt(name, entry)}
    children = [name for name, _ in module.named_children()]
    # The first of the best: unchanged names win a tie.
    renamings = _renamings(list(state), children)
    renamed = min(renamings, key=lambda names: sum(map(len, misfits(names))))
    missing, unexpected = misfits(renamed)
    matched: dict[str, Tensor] = {}
    shapes, layouts, kinds, conflicts, non_finite = [], [], [], [], []
    for new, old in renamed.items():
        if new not in first or first[new] in head:
            continue
        name, entry, mine = first[new], state[old].detach(), own[new]
        if entry.shape != mine.shape:
            shapes.append(f"{new} is {tuple(entry.shape)}, the network has {tuple(mine.shape)}")
            continue
        if layout := unreadable_layout(entry):
            layouts.append(f"{new} is {layout}")
            continue
        if entry.is_complex() or entry.is_floating_point() != mine.is_floating_point():
            kinds.append(f"{new} is {entry.dtype}, the network has {mine.dtype}")
            continue
        entry = entry.to(mine.device, mine.dtype)
        # Infinity is legitimate in a buffer, an attention mask for one; NaN never is.
        if torch.isnan(entry).any() or (name in parameters and torch.isinf(entry).any()):
            non_finite.append(new)
        elif name in matched and not torch.equal(matched[name], entry):
            conflicts.append(f"{new} and {name}")
        matched.setdefault(name, entry)
    groups = {
        "missing from it": missing,
        "unexpected in it": unexpected,
        "shape differs": shapes,
        "no plain array of values": layouts,
        "dtype differs in kind": kinds,
        "tied in the network, different in it": conflicts,
        "NaN or infinite (in the network's dtype)": non_finite,
    }
    if any(groups.values()):
        lines = [f"  {what} ({len(of)}): {listed(of)}" for what, of in groups.items() if of]
        known = advice(list(state), missing)
        lines += [f"  {known}"] if known else []
        raise CheckpointError("\n".join([f"{source} does not fit the network:", *lines]))
    return matched


def _all_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def unreadable_layout(tensor: Tensor) -> str | None:
    """Name the layout of a tensor that holds no plain array of values; None for all others.

    Example:
        >>> unreadable_layout(torch.ones(2, 2).to_sparse()), unreadable_layout(torch.ones(2))
        ('sparse_coo', None)
    """
    if tensor.is_meta:
        return "meta"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    return "quantized" if tensor.is_quantized else None


def _renamings(names: list[str], children: list[str]) -> Iterator[dict[str, str]]:
    """Give each reading of the names as new -> old.

    Unchanged first, then without a common prefix, without _orig_mod, and below a child.
    """
    common = 0
    parts = [name.split(".")[:-1] for name in names]
    for segment in zip(*parts, strict=False):
        if len(set(segment)) > 1:
            break
        common += 1
    for child in ("", *children):
        before = f"{child}." if child else ""
        for cut in range(common + 1):
            stripped = {before + name.split(".", cut)[-1]: name for name in names}
            yield stripped
            plain = {new.replace("_orig_mod.", ""): old for new, old in stripped.items()}
            if len(plain) == len(names):
                yield plain
