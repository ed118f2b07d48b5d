"""Look for modes that no chain has found, so that none is left out without a word.

Chains that all descend into one mode of several agree with each other, and no number of theirs
shows what they have missed. Scouts descend as well, from more starts and from draws of the
program's own prior, and where one finds another mode a chain is put there, if that mode matters:
with a share m of the mass at d standard deviations it adds about m d² to the variance, so that a
rare mode far away counts, too. If the chains then pass from mode to mode, all is well; if they do
not, R-hat says it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_fe.inference.program.ancestors import prior_positions
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.warmup.newton import Descent, descend
from ppl_fe.inference.warmup.other_modes import APART, MATTERS, added_variances, distances
from ppl_fe.inference.warmup.starts import uniform_positions

NUM_SCOUTS = 16  # half of them from the prior, if it can be drawn from
MOST_STEPS = 40
MOST_VALUES = 10**7  # that the scouts' Hessians hold at once, for each datum: D² · N · scouts


def with_other_modes(density: Density, found: Descent, seed: int) -> Descent:
    """Put chains that share their mode with others where scouts found one of its own.

    Args:
        density: the target.
        found: where each chain would start.
        seed: of the scouts.
    """
    values = NUM_SCOUTS * density.num_parameters**2 * density.num_data
    if len(found.mass) < 2 or density.chain_values or values > MOST_VALUES:
        return found
    drawn = prior_positions(density, NUM_SCOUTS // 2, seed)
    others = uniform_positions(density, NUM_SCOUTS - len(drawn), seed + 1)
    scouts = descend(density, torch.cat([drawn, others]), MOST_STEPS)
    if scouts is None:
        return found
    mass = torch.where(scouts.at_mode, scouts.mass, -torch.inf).nan_to_num(-torch.inf)
    added, _ = added_variances(scouts._replace(mass=mass), found)
    for scout in mass.argsort(descending=True).tolist():
        one = scouts.picked([scout])
        if added[scout] < MATTERS or (distances(one, found) < APART).any():
            continue
        chain = _redundant(found)
        if chain is None:
            break
        found = Descent(*(_replaced(*pair, chain) for pair in zip(found, one, strict=True)))
    return found


def _redundant(found: Descent) -> int | None:
    """Find a chain that shares its mode with another; None where every chain has its own."""
    apart = distances(found, found)
    apart.fill_diagonal_(torch.inf)
    nearest = apart.amin(0)
    return int(nearest.argmin()) if bool(nearest.min() < APART) else None


def _replaced(values: Tensor, by: Tensor, chain: int) -> Tensor:
    values = values.clone()
    values[chain] = by[0]
    return values
