"""Training some entries of a module: masks to indices, and state for the trained entries alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.ranks import summed

# Name of a parameter -> sorted positions of its trained entries; None for all of them.
Entries = Mapping[str, Tensor | None]


def check_mask(network: FlatNetwork, mask: Tensor) -> None:
    """Check that a mask (D,) chooses some entries of the network's vector.

    Raises:
        TypeError: no tensor, or not of booleans.
        ValueError: of another shape, or True nowhere.

    Example:
        >>> check_mask(FlatNetwork(nn.Linear(1, 1)), torch.tensor([True]))
        Traceback (most recent call last):
            ...
        ValueError: mask must have shape (2,), one entry a parameter, got (1,)
    """
    if not isinstance(mask, Tensor):
        inside = "; give its .mask" if hasattr(mask, "mask") else ""
        raise TypeError(f"mask must be a tensor of booleans, got {type(mask).__name__}{inside}")
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be of booleans, got {mask.dtype}; compare first, for example mask > 0"
        )
    if mask.shape != (network.num_parameters,):
        raise ValueError(
            f"mask must have shape ({network.num_parameters},), one entry a parameter, "
            f"got {tuple(mask.shape)}"
        )
    if not mask.any():
        raise ValueError("mask is False everywhere: there is nothing to train")


def mask_entries(network: FlatNetwork, mask: Tensor, head: Sequence[str] = ()) -> Entries:
    """Split a mask (D,) into the trained entries of each tensor.

    Args:
        network: whose names and slices the mask follows.
        mask: (D,) bool.
        head: names of tensors that are trained whole, whatever the mask says of them.

    Returns:
        Name -> sorted positions (K_t,) in the flattened tensor, or None for a tensor trained
        whole; tensors without a trained entry are left out.

    Example:
        >>> network = FlatNetwork(nn.Linear(2, 2))
        >>> mask = torch.tensor([False, True, False, True, True, True])
        >>> mask_entries(network, mask)
        {'weight': tensor([1, 3]), 'bias': None}
    """
    entries: dict[str, Tensor | None] = {}
    for name, where in network.slices.items():
        part = mask[where]
        count = part.numel() if name in head else int(part.sum())
        if count == part.numel():
            entries[name] = None
        elif count:
            entries[name] = part.nonzero().squeeze(1).to(network.device)
    return entries


def module_at(network: FlatNetwork, vector: Tensor) -> nn.Module:
    """Copy a network's module and give the copy the weights of a vector (D,).

    Example:
        >>> module_at(FlatNetwork(nn.Linear(1, 1)), torch.tensor([2.0, 1.0])).bias.item()
        1.0
    """
    module = copy.deepcopy(network.module)
    with torch.no_grad():
        for name, value in network.unflatten(vector).items():
            module.get_parameter(name).copy_(value)
    return module


class TrainedEntries:
    """The trained entries of a module, as few leaf tensors that any torch optimiser takes.

    All entries of partly trained tensors stand packed in one vector (K,); tensors trained whole
    stand for themselves. So the optimiser is torch's own, knows K numbers instead of D, and
    never touches a frozen one: weight decay, momentum and rounding cannot move it. A tensor's
    dense gradient lives only until its trained entries are read off it, and tensors without
    trained entries have none.

    Args:
        module: changed in place: its parameters require gradients only where entries are trained,
            and `write` sets the trained entries.
        entries: as from `mask_entries`.

    Attributes:
        leaves: what to give the optimiser; the packed vector (K,), if any, comes first.

    Raises:
        ValueError: no entries.

    Example:
        >>> module = nn.Linear(2, 1)
        >>> trained = TrainedEntries(module, {"weight": torch.tensor([1])})
        >>> optimizer = torch.optim.SGD(trained.leaves, lr=0.5)
        >>> before = module.weight.detach().clone()
        >>> trained.clear_gradients()
        >>> module(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> trained.write()
        >>> module.weight.detach() - before
        tensor([[ 0.0000, -0.5000]])
    """

    def __init__(self, module: nn.Module, entries: Entries) -> None:
        if not entries:
            raise ValueError("entries: there is nothing to train")
        module.requires_grad_(False)
        named = dict(module.named_parameters())
        self._parts: list[tuple[str, nn.Parameter, Tensor, slice]] = []
        self._whole = {name: named[name] for name, index in entries.items() if index is None}
        start = 0
        for name, index in entries.items():
            named[name].requires_grad_(True)
            if index is not None:
                self._parts.append((name, named[name], index, slice(start, start + len(index))))
                start += len(index)
        self.leaves: list[nn.Parameter] = list(self._whole.values())
        if not self._parts:
            return
        values = [torch.take(tensor.detach(), index) for _, tensor, index, _ in self._parts]
        self._packed = nn.Parameter(torch.cat(values))
        self._packed.grad = torch.zeros_like(self._packed)
        self.leaves.insert(0, self._packed)
        for _, tensor, index, where in self._parts:
            hook: Any = partial(self._collect, index, where)
            tensor.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _collect(self, index: Tensor, where: slice, tensor: Tensor) -> None:
        assert self._packed.grad is not None
        assert tensor.grad is not None
        self._packed.grad[where] = torch.take(tensor.grad, index)
        tensor.grad = None

    def clear_gradients(self) -> None:
        """Forget the gradients; to be called before every backward pass."""
        for leaf in self._whole.values():
            leaf.grad = None
        # Kept and set to zero: a tensor that the pass does not reach leaves no old values behind.
        if self._parts and self._packed.grad is not None:
            self._packed.grad.zero_()

    def add_over_ranks(self, loss: float, share: float) -> float:
        """Put a batch's gradient in the place of that of this rank's rows, by one sum over all.

        Args:
            loss: mean loss of this rank's rows.
            share: theirs of the batch's rows, by which loss and gradient weigh.

        Returns:
            The mean loss of the batch.
        """
        for leaf in self.leaves:
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)
        gradients = [leaf.grad.reshape(-1) for leaf in self.leaves if leaf.grad is not None]
        own = torch.cat([*gradients, gradients[0].new_tensor([loss])])
        sizes = [*map(len, gradients), 1]
        *parts, whole = torch.split(summed(share * own), sizes)
        for leaf, part in zip(self.leaves, parts, strict=True):
            leaf.grad = part.view_as(leaf).to(leaf.dtype)
        return float(whole)

    def write(self) -> None:
        """Set the module's entries to the leaves' values; to be called after every step."""
        with torch.no_grad():
            for _, tensor, index, where in self._parts:
                tensor.put_(index, self._packed[where])

    def values(self) -> list[Tensor]:
        """Copy the leaves: the state of training, K numbers and the whole tensors.

        Example:
            >>> trained = TrainedEntries(nn.Linear(1, 1, bias=False), {"weight": None})
            >>> [tuple(value.shape) for value in trained.values()]
            [(1, 1)]
        """
        return [leaf.detach().clone() for leaf in self.leaves]

    def restore(self, values: Sequence[Tensor]) -> None:
        """Set leaves and module back to `values()`."""
        with torch.no_grad():
            for leaf, value in zip(self.leaves, values, strict=True):
                leaf.copy_(value)
        self.write()

    def non_finite_gradients(self) -> list[str]:
        """Name the tensors whose gradient at trained entries holds NaN or infinity.

        Example:
            >>> module = nn.Linear(1, 1)
            >>> trained = TrainedEntries(module, {"weight": None, "bias": None})
            >>> (module(torch.full((1, 1), float("inf"))).sum()).backward()
            >>> trained.non_finite_gradients()
            ['weight']
        """
        gradients = [leaf.grad for leaf in self.leaves if leaf.grad is not None]
        if not gradients or torch.stack([g.isfinite().all() for g in gradients]).all():
            return []
        found = {name: leaf.grad for name, leaf in self._whole.items()}
        if self._parts and self._packed.grad is not None:
            found |= {name: self._packed.grad[where] for name, _, _, where in self._parts}
        return [name for name, g in found.items() if g is not None and not g.isfinite().all()]


def build_optimizer(
    name: str, leaves: Sequence[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Build torch's own optimiser of the leaves, by name.

    Args:
        name: "adamw" (Loshchilov & Hutter 2019, torch's default β) or "sgd" (momentum 0.9).
        leaves: the tensors to train.
        learning_rate: η.
        weight_decay: pull towards zero, of the trained entries only, as the others are no leaves.

    Raises:
        ValueError: another name; a negative pull.

    Example:
        >>> build_optimizer("sgd", [nn.Parameter(torch.ones(1))], 0.1, 0.0).defaults["momentum"]
        0.9
    """
    if not (isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay must be >= 0, got {weight_decay!r}")
    if name == "adamw":
        return torch.optim.AdamW(leaves, lr=learning_rate, weight_decay=weight_decay, fused=True)
    if name == "sgd":
        return torch.optim.SGD(leaves, lr=learning_rate, weight_decay=weight_decay, momentum=0.9)
    raise ValueError(f"optimizer must be 'adamw' or 'sgd', got {name!r}")
