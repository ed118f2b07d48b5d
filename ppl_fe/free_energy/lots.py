"""Checkpoints side by side: lots that share their buffers, divided where they fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from ppl_fe.files.no_room import FULL
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.kept_ranking import KeptRanking
from ppl_fe.networks.flat import FlatNetwork

# Side by side up to here: more chains a step save no time on a CPU and cost memory, and what is one
# lot is one task, for one core.
MOST_CHAINS, MOST_COORDINATES = 48, 5 * 10**7
MOST_TO_CHOOSE_BY = 4  # checkpoints whose evidence chooses γ and the head's precision
SEEDS_APART = 10**6  # so that no lot repeats the chains of a ranking at the next seed


class Lot(NamedTuple):
    """Checkpoints that run side by side.

    number: by which it has its seed and its folder. names: of the checkpoints. own: gives the
    options of its chains, also for another try, which goes on with what an earlier one has kept.
    """

    number: int
    names: list[str]
    own: Callable[[], ChainOptions]


def spread_evenly(names: Sequence[str], most: int) -> list[str]:
    """Take so many at most, spread evenly over their order.

    Example:
        >>> spread_evenly(["a", "b", "c", "d", "e", "f"], 3)
        ['a', 'c', 'e']
    """
    count = min(len(names), most)
    return [names[k * len(names) // count] for k in range(count)]


Found = TypeVar("Found", bound=Mapping[str, Any])
RunLots = Callable[[Sequence[Lot]], Iterator[tuple[Lot, Found | Exception]]]


def run_lots(
    networks: Mapping[str, FlatNetwork],
    options: ChainOptions,
    run: RunLots[Found],
    kept: KeptRanking | None = None,
) -> Iterator[tuple[Lot, Found | Exception]]:
    """Run all checkpoints, lot after lot; give what is found of each lot, or why there is nothing.

    A lot that fails is divided, and its halves run anew after all others, until what fails stands
    alone.

    Args:
        networks: by name.
        options: of the chains; each lot has its own seed, and its own folder where there is one.
        run: runs lots, and gives each with what was found as it comes, in any order.
        kept: the ranking that keeps what is found, rows then; none by default.

    Raises:
        KeyboardInterrupt: Ctrl-C; the message says what is kept.
        OSError: the disk is full.
    """

    def lot(number: int, names: list[str]) -> Lot:
        def own() -> ChainOptions:
            seeded = replace(options, seed=options.seed + number * SEEDS_APART)
            return seeded if kept is None else kept.of_lot(number, seeded)

        return Lot(number, names, own)

    divide = partial(side_by_side, num_chains=options.num_chains)
    lots = [*enumerate(divide(networks))] if kept is None else kept.take_up(networks, divide)
    for name, row in () if kept is None else kept.finished():
        yield lot(-1, [name]), cast(Found, {name: row})
    count = len(lots)
    while lots:
        failed: list[Lot] = []
        try:
            for one, found in run([lot(*each) for each in lots]):
                if not isinstance(found, Exception):
                    if kept is not None:
                        kept.finish(one.number, found)
                elif isinstance(found, OSError) and found.errno in FULL:
                    raise found
                elif len(one.names) > 1:
                    failed.append(one)
                    continue
                yield one, found
        except KeyboardInterrupt:
            raise (KeyboardInterrupt() if kept is None else kept.stop()) from None
        lots = []
        for number, names, _ in sorted(failed):  # in whatever order they have come
            halves = [names[: len(names) // 2], names[len(names) // 2 :]]
            lots += enumerate(halves, count) if kept is None else kept.divide(number, halves)
            count += 2


def side_by_side(networks: Mapping[str, FlatNetwork], num_chains: int) -> Sequence[list[str]]:
    """Divide the names into lots that share their buffers and fit side by side."""
    lots: list[list[str]] = []
    for name, network in networks.items():
        chains = min(MOST_CHAINS, MOST_COORDINATES // network.num_parameters)
        most = max(1, chains // num_chains)
        for lot in lots:
            if len(lot) < most and _same_buffers(networks[lot[0]].module, network.module):
                lot.append(name)
                break
        else:
            lots.append([name])
    return lots


def anchors_of(networks: Iterable[FlatNetwork]) -> Tensor:
    """Give the weights of a lot, (G, D)."""
    return torch.stack([network.anchor for network in networks])


def _same_buffers(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.buffers(), second.buffers(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
