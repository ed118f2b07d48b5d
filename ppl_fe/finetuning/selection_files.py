"""A selection as a file, bound to the pretrained weights that it was made on by their hash."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from ppl_fe.finetuning.selected import Selection
from ppl_fe.networks.checked_files import read_checked, write_checked
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.hashes import network_hash
from ppl_fe.networks.matching import listed

FORMAT = "ppl-fe selection 1"
VECTORS = ("score", "scale_mean", "scale_sd", "r_hat", "mcse", "probability_in_top")


class SelectionError(ValueError):
    """A selection file that cannot be read, or that belongs to other weights.

    Example:
        >>> issubclass(SelectionError, ValueError)
        True
    """


def write_selection(selection: Selection, path: str | os.PathLike[str]) -> None:
    """Write a selection; `Selection.save`.

    Raises:
        ValueError: it has no `base_hash`.
    """
    if not selection.base_hash:
        raise ValueError("a selection made by hand has no base_hash: set it to bind the file")
    vectors = {name: getattr(selection, name) for name in VECTORS}
    tensors = {name: vector for name, vector in vectors.items() if vector is not None}
    tensors["indices"] = selection.mask.nonzero().squeeze(1)
    about = {
        "method": selection.method,
        "sizes": _sizes(selection.slices),
        "head": selection.head,
        "settings": dict(selection.settings),
        "notes": selection.notes,
        "base_hash": selection.base_hash,
    }
    write_checked(path, tensors, about, FORMAT)


def load_selection(path: str | os.PathLike[str], network: FlatNetwork) -> Selection:
    """Read a file of `Selection.save`, for the network that it was made on and no other.

    Args:
        path: the file.
        network: the pretrained network; its head may hold anything.

    Returns:
        The selection, its tensors on the network's device.

    Raises:
        FileNotFoundError: there is no such file.
        SelectionError: a damaged file, another architecture, other weights outside the head.

    Example:
        >>> import tempfile
        >>> from ppl_fe.finetuning.selection import select_parameters
        >>> network = FlatNetwork(torch.nn.Linear(9, 1))
        >>> data = (torch.zeros(2, 9), torch.tensor([0.0, 1.0]))
        >>> made = select_parameters(
        ...     network, data, likelihood="normal", sparsity=0.1, method="magnitude")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made.save(f"{folder}/selection.safetensors")
        ...     load_selection(f"{folder}/selection.safetensors", network)
        Selection(method='magnitude', 1 of 10 parameters, 10 %)
    """
    tensors, said = read_checked(path, FORMAT, "selection", SelectionError)
    own, made = _sizes(network.slices), [tuple(pair) for pair in said["sizes"]]
    if made != own:
        missing = [f"{name} ({size}) is missing" for name, size in made if (name, size) not in own]
        extra = [f"{name} ({size}) is unexpected" for name, size in own if (name, size) not in made]
        wrong = listed([*missing, *extra]) or "its tensors come in another order"
        raise SelectionError(f"{path} belongs to another architecture: {wrong}")
    head = tuple(said["head"])
    if network_hash(network, head) != said["base_hash"]:
        raise SelectionError(
            f"{path} belongs to other weights than the network's (or to another dtype): load the "
            "pretrained checkpoint it was made on, whose file may have changed since, or select "
            "again on this one"
        )
    mask = torch.zeros(network.num_parameters, dtype=torch.bool)
    mask[tensors.pop("indices")] = True
    return Selection(
        method=said["method"],
        mask=mask.to(network.device),
        slices=network.slices,
        head=head,
        settings=said["settings"],
        notes=tuple(said["notes"]),
        base_hash=said["base_hash"],
        **{name: vector.to(network.device) for name, vector in tensors.items()},
    )


def _sizes(slices: Mapping[str, slice]) -> list[tuple[str, int]]:
    return [(name, where.stop - where.start) for name, where in slices.items()]
