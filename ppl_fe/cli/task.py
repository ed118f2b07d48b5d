"""The options that `select` and `finetune` share: a network and a task's data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ppl_fe.cli.factories import FACTORY, load_factory

if TYPE_CHECKING:  # these take seconds to import, and --help is to answer at once
    from ppl_fe.networks.flat import FlatNetwork


def add_task(command: argparse.ArgumentParser, batch_size: int, parameters: str) -> None:
    """Add the checkpoint and the options that make a network and its task.

    Args:
        command: the command's options.
        batch_size: its default.
        parameters: what may be restricted to some of them, in words.
    """
    command.add_argument("base", help="the pretrained checkpoint, a file or a folder")
    command.add_argument(
        "--network", required=True, metavar=FACTORY, help="() -> torch.nn.Module with its head"
    )
    command.add_argument(
        "--data",
        required=True,
        metavar=FACTORY,
        help="() -> (inputs, targets), a mapping, a Dataset or a DataLoader",
    )
    command.add_argument(
        "--head",
        nargs="+",
        metavar="PREFIX",
        help="of the fresh head's parameters, which stay as the factory makes them; default none",
    )
    command.add_argument(
        "--likelihood", help="categorical, normal or next_token; default categorical"
    )
    command.add_argument(
        "--parameters",
        nargs="+",
        metavar="NAME",
        help=f"{parameters}: names, patterns in quotes ('*.attention.*'), or linear; default all",
    )
    command.add_argument("--batch-size", type=int, help=f"examples a step; default {batch_size}")
    command.add_argument(
        "--seed", type=int, help="of the run, and of torch before the factories; default 0"
    )


def load_network(given: dict[str, Any]) -> FlatNetwork:
    """Make the network of these options and put the checkpoint into it, the head apart.

    Takes `network` and `base` out of the options.

    Raises:
        ValueError: the checkpoint cannot be read or does not fit; a head that is not there.
        ImportError: the factory's module cannot be imported.
    """
    import torch

    from ppl_fe.networks.checkpoints import read_checkpoint
    from ppl_fe.networks.flat import FlatNetwork
    from ppl_fe.networks.matching import CheckpointError

    torch.manual_seed(given.get("seed", 0))  # a fresh head is random: the same one every time
    path = given.pop("base")
    state = read_checkpoint(path)
    network = FlatNetwork(load_factory("--network", given.pop("network")))
    names = network.head_names(given.get("head"))
    try:
        return network.with_state(state, names)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
