"""Modes that descents found, and whether the draws came near them.

A chain that begins in a rare mode may leave it in warm-up for good. R-hat then sees chains that
agree, and the mode is in no draw: with a share m of the mass at d standard deviations, m d² of the
variance is missing. What a descent found is therefore remembered, and held against the draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ppl_fe.inference.program.density import Blocks
from ppl_fe.inference.warmup.newton import AT_THE_MODE, Descent

APART = 4.0  # standard deviations
MATTERS = 0.1  # of the variance of some coordinate: 5 % of its standard deviation
LEAST_SEEN = 0.1  # of the share that Laplace's mass gives a mode, which is no exact one


class OtherModes(NamedTuple):
    """Remember modes that matter, beside the one of most mass, and count the draws about each.

    Attributes:
        position: (M, D), that of most mass first.
        inverse: (M, D, D), of the factor whose square is the inverse of the Hessian there.
        level: (M,), log p there.
        share: (M,), of the mass of all of them.
        added: (M,), what each would add to the variance of its coordinate, as a share of it.
        coordinate: (M,), the one to which it would add most.
        near: (M,), the share of the chains that was about each, summed over the looks.
        looks: their number, (1,).

    Example:
        >>> two, one = torch.tensor([[0.0], [40.0]]).double(), torch.ones(2).double()
        >>> where = two, one[:, None, None], torch.tensor([0.0, -5.8]).double()
        >>> share = torch.tensor([0.997, 0.003]).double()
        >>> modes = OtherModes(*where, share, 4.8 * one, 0 * one, 0 * one, 0 * one[:1])
        >>> modes.look(torch.tensor([[0.1], [0.3]]))
        >>> modes.missing({"w": slice(0, 1)})
        {'w': 4.8}
    """

    position: Tensor
    inverse: Tensor
    level: Tensor
    share: Tensor
    added: Tensor
    coordinate: Tensor
    near: Tensor
    looks: Tensor

    @classmethod
    def of(cls, found: Descent) -> Self | None:
        """Take those of descents that matter; of several in one mode the one of most mass."""
        mass = found.mass.nan_to_num(-torch.inf)
        added, coordinate = added_variances(found, found)
        kept = [int(mass.argmax())]
        for one in mass.argsort(descending=True).tolist():
            apart = distances(found.picked([one]), found.picked(kept)) >= APART
            if found.at_mode[one] and added[one] >= MATTERS and apart.all():
                kept.append(one)
        if len(kept) == 1:
            return None
        added[kept[0]] = added[kept[1:]].max()  # of draws that are all about another one
        level = mass - torch.linalg.slogdet(found.factor).logabsdet
        zero = torch.zeros_like(mass[kept])
        return cls(
            found.position[kept],
            torch.linalg.inv(found.factor[kept]),
            level[kept],
            mass[kept].softmax(0),
            added[kept],
            coordinate[kept],
            zero,
            zero[:1].clone(),
        )

    def look(self, position: Tensor) -> None:
        """Count each chain (C, D) for the mode whose normal density is largest there."""
        away = position.to(self.position)[None] - self.position[:, None]
        whitened = away @ self.inverse.mT
        about = (self.level[:, None] - 0.5 * whitened.square().sum(-1)).argmax(0)
        counts = torch.bincount(about, minlength=len(self.level)).to(self.near)
        self.near.add_(counts / len(position))
        self.looks.add_(1)

    def forget(self) -> None:
        """Forget what was seen: the draws begin."""
        self.near.zero_()
        self.looks.zero_()

    def missing(self, blocks: Blocks) -> dict[str, float]:
        """Give what modes that the draws hardly saw would add to a variance, the most of a site.

        Args:
            blocks: name of a site -> its run of coordinates.
        """
        found = dict[str, float]()
        for k in torch.nonzero(self.near < LEAST_SEEN * self.share * self.looks)[:, 0].tolist():
            at = int(self.coordinate[k])
            site = next(name for name, block in blocks.items() if block.start <= at < block.stop)
            found[site] = max(found.get(site, 0.0), float(self.added[k]))
        return found


def unvisited(missing: Mapping[str, float]) -> str:
    """Say what is missing for want of a mode, and what to do.

    Args:
        missing: of a site with modes that the draws hardly saw, what they would add to the
            variance of one of its values.

    Example:
        >>> unvisited({"mu": 1.13})[:61]
        'a descent before the run found a mode that the draws hardly s'
    """
    sites = " and ".join(map(repr, missing))
    most = max(missing.values())
    return (
        f"a descent before the run found a mode that the draws hardly saw, far off in {sites}; by "
        f"its mass a variance is some {1 + most:.2g} times as large as theirs: look there by "
        "initial_params, or give a prior or a likelihood that leaves one mode"
    )


def added_variances(modes: Descent, found: Descent) -> tuple[Tensor, Tensor]:
    """Estimate by how much each mode (A,) changes the variance of the coordinate it changes most.

    Beside draws about a mode of variance s², one of mass r times as large, of variance t², at a
    distance d changes it by about r |(d² + t²)/s² − 1|. A narrow one within a wide one takes away.

    Args:
        modes: to be held against the one of most mass among them and those found.
        found: where chains would start.

    Returns:
        The shares of that variance, infinite for the one of most mass; and the coordinates.
    """
    both = Descent(*(torch.cat(pair) for pair in zip(modes, found, strict=True)))
    mass = both.mass.nan_to_num(-torch.inf)
    most = mass.argmax()
    sd = torch.linalg.vector_norm(both.factor[most], dim=-1)
    own = torch.linalg.vector_norm(modes.factor, dim=-1)
    away = modes.position - both.position[most]
    changed, coordinate = (((away.square() + own.square()) / sd.square()) - 1).abs().max(-1)
    added = (mass[: len(modes.mass)] - mass[most]).exp() * changed
    added[int(most) : int(most) + 1] = torch.inf  # where it is one of them
    return added, coordinate


def distances(these: Descent, those: Descent) -> Tensor:
    """Compute distances (A, B) of modes, in standard deviations of the wider of the two.

    Of two modes that are known to be such, not points on the way to one, it is the narrower: one
    may lie within the other, as a spike in a slab.
    """
    away = these.position[:, None] - those.position  # (A, B, D)
    by_each = [
        torch.linalg.vector_norm(torch.linalg.solve(factor, away[..., None])[..., 0], dim=-1)
        for factor in (these.factor[:, None], those.factor[None])
    ]
    known = (these.away[:, None] < AT_THE_MODE) & (those.away < AT_THE_MODE)
    return torch.where(known, torch.maximum(*by_each), torch.minimum(*by_each))
