"""The options that `select` and `finetune` share: a network, a task's data, files to write."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_fe.cli.factories import load_factory

if TYPE_CHECKING:  # these take seconds to import, and --help is to answer at once
    from ppl_fe.networks.flat import FlatNetwork


def add_task(command: argparse.ArgumentParser) -> None:
    """Add the checkpoint and the options that make a network and its task."""
    factory = "MODULE:FACTORY"
    command.add_argument("base", help="the pretrained checkpoint, a file or a folder")
    command.add_argument(
        "--network", required=True, metavar=factory, help="() -> torch.nn.Module with its head"
    )
    command.add_argument(
        "--data",
        required=True,
        metavar=factory,
        help="() -> (inputs, targets), a mapping, a Dataset or a DataLoader",
    )
    command.add_argument(
        "--head",
        help="prefix of the fresh head's parameters, which stay as the factory makes them",
    )
    command.add_argument("--likelihood", help="categorical, normal or next_token")
    command.add_argument("--batch-size", type=int, help="examples a step")
    command.add_argument("--seed", type=int, help="of the run, and of torch before the factories")


def load_network(given: dict[str, Any]) -> FlatNetwork:
    """Make the network of these options and put the checkpoint into it, the head apart.

    Takes `network` and `base` out of the options.

    Raises:
        ValueError: the checkpoint cannot be read or does not fit; a head that is not there.
        ImportError: the factory's module cannot be imported.
    """
    import torch

    from ppl_fe.finetuning.train.trained_entries import head_names
    from ppl_fe.networks.checkpoints import read_checkpoint
    from ppl_fe.networks.flat import FlatNetwork
    from ppl_fe.networks.matching import CheckpointError

    torch.manual_seed(given.get("seed", 0))  # a fresh head is random: the same one every time
    network = FlatNetwork(load_factory("--network", given.pop("network")))
    path = given.pop("base")
    state = read_checkpoint(path)
    names = head_names(network, given.get("head"))
    try:
        return network.with_state(state, names)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def check_output(option: str, path: str) -> None:
    """Refuse a file that cannot be written before hours are spent on what it is to hold.

    Raises:
        ValueError: its folder does not exist, or it is a folder itself.
    """
    if not Path(path).parent.is_dir():
        raise ValueError(f"{option}: there is no folder {str(Path(path).parent)!r}")
    if Path(path).is_dir():
        raise ValueError(f"{option} must be a file, {path!r} is a folder")
