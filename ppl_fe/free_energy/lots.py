"""Checkpoints side by side: lots that share their buffers, divided where they fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from ppl_fe.files.no_room import FULL
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.kept_ranking import KeptRanking
from ppl_fe.networks.flat import FlatNetwork

# Side by side up to here: more chains a step save no time on a CPU and cost memory.
MOST_CHAINS, MOST_COORDINATES = 128, 5 * 10**7
SEEDS_APART = 10**6  # so that no lot repeats the chains of a ranking at the next seed

Found = TypeVar("Found")


def run_lots(
    networks: Mapping[str, FlatNetwork],
    options: ChainOptions,
    run_lot: Callable[[Mapping[str, FlatNetwork], ChainOptions], Mapping[str, Found]],
    kept: KeptRanking | None = None,
) -> Iterator[tuple[str, Found | Exception]]:
    """Run all checkpoints, lot after lot; give what is found of each, or why there is nothing.

    A lot that fails is divided, and its halves run anew after all others, until what fails stands
    alone.

    Args:
        networks: by name.
        options: of the chains; each lot has its own seed, and its own folder where there is one.
        run_lot: what is done with a lot.
        kept: the ranking that keeps what is found, rows then; none by default.

    Raises:
        KeyboardInterrupt: Ctrl-C; the message says what is kept.
        OSError: the disk is full.
    """
    divide = partial(side_by_side, num_chains=options.num_chains)
    if kept is None:
        lots = deque(enumerate(divide(networks)))
    else:
        lots = deque(kept.take_up(networks, divide))
        yield from kept.finished()
    count = len(lots)
    while lots:
        number, names = lots.popleft()
        own = replace(options, seed=options.seed + number * SEEDS_APART)
        own = own if kept is None else kept.of_lot(number, own)
        try:
            found = run_lot({name: networks[name] for name in names}, own)
        except Exception as error:  # whatever one of them can raise
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            if len(names) == 1:
                yield names[0], error
                continue
            halves = [names[: len(names) // 2], names[len(names) // 2 :]]
            lots.extend(enumerate(halves, count) if kept is None else kept.divide(number, halves))
            count += 2
        except KeyboardInterrupt:
            raise (KeyboardInterrupt() if kept is None else kept.stop()) from None
        else:
            if kept is not None:
                kept.finish(number, found)
            yield from found.items()


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
