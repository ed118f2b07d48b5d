"""The options that `select` and `finetune` share: a network and a task's data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ppl_fe.cli.factories import FACTORY, find_factory

if TYPE_CHECKING:  # these take seconds to import, and --help is to answer at once
    from ppl_fe.networks.flat import FlatNetwork

# Those of `ppl_fe.models`, which takes seconds to import; a test compares them.
LIKELIHOODS = ("categorical", "next_token", "normal")


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
        "--likelihood", choices=LIKELIHOODS, help="normal is of sd 1; default categorical"
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


def find_task(given: dict[str, Any], *options: str) -> None:
    """Put the factories themselves in the place of their names, all before any is called.

    Args:
        given: the options, of which the seed is set first: a fresh head is random, and the same one
            every time.
        options: that name factories; those not given are left out.

    Raises:
        ValueError, ImportError: there is no such factory.
    """
    import torch

    torch.manual_seed(given.get("seed", 0))
    for name in options:
        if name in given:
            given[name] = find_factory(f"--{name}", given[name])


def load_network(given: dict[str, Any]) -> FlatNetwork:
    """Make the network of these options and put the checkpoint into it, the head apart.

    Takes `network`, which `find_task` has found, and `base` out of the options.

    Raises:
        ValueError: the checkpoint cannot be read or does not fit; a head that is not there.
    """
    from ppl_fe.networks.checkpoints import read_checkpoint
    from ppl_fe.networks.flat import FlatNetwork
    from ppl_fe.networks.matching import CheckpointError

    path = given.pop("base")
    state = read_checkpoint(path)
    network = FlatNetwork(given.pop("network")())
    names = network.head_names(given.get("head"))
    try:
        return network.with_state(state, names)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
