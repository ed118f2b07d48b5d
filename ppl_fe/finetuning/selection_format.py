"""The selection file: a selection's fields, bound to the weights they were made on by a hash."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

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


def write_fields(fields: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the fields of a `Selection`, by name.

    Raises:
        ValueError: its `base_hash` is empty.
    """
    if not fields["base_hash"]:
        raise ValueError("a selection made by hand has no base_hash: set it to bind the file")
    tensors = {name: fields[name] for name in VECTORS if fields[name] is not None}
    tensors["indices"] = fields["mask"].nonzero().squeeze(1)
    about = {
        "method": fields["method"],
        "sizes": _sizes(fields["slices"]),
        "head": fields["head"],
        "settings": dict(fields["settings"]),
        "notes": fields["notes"],
        "base_hash": fields["base_hash"],
    }
    write_checked(path, tensors, about, FORMAT)


def read_fields(path: str | os.PathLike[str], network: FlatNetwork) -> dict[str, Any]:
    """What `write_fields` wrote, for the network it was made on; tensors on the network's device.

    Raises:
        FileNotFoundError: there is no such file.
        SelectionError: a damaged file, another architecture, other weights outside the head.
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
    return {
        "method": said["method"],
        "mask": mask.to(network.device),
        "slices": network.slices,
        "head": head,
        "settings": said["settings"],
        "notes": tuple(said["notes"]),
        "base_hash": said["base_hash"],
        **{name: vector.to(network.device) for name, vector in tensors.items()},
    }


def _sizes(slices: Mapping[str, slice]) -> list[tuple[str, int]]:
    return [(name, where.stop - where.start) for name, where in slices.items()]
