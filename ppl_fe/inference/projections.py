"""What is kept of the draws of a site too large to keep."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from ppl_fe.inference.store import Arrays

NUM_SUBSET, NUM_PROJECTIONS = 100, 16
BLOCK_VALUES = 2**20


class Projection:
    """A fixed random subset of coordinates and fixed random projections of a large site.

    Coordinate i goes to projection i mod 16 with a random sign: Σ ±w_i/√(D/16). Each sees a
    sixteenth of the coordinates; a byte a coordinate is kept, not sixteen floats.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.places = torch.tensor(sorted(random.Random(size).sample(range(size), NUM_SUBSET)))
        generator = torch.Generator().manual_seed(size)
        signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
        self.signs = signs.mul_(2).sub_(1).to(device)

    def reduce(self, name: str, value: Tensor) -> Arrays:
        """Values (C, S, *shape) -> the subset (C, S, 100) and the projections (C, S, 16)."""
        flat = value.flatten(2)
        sums = flat.new_zeros((*flat.shape[:2], NUM_PROJECTIONS))
        pieces = zip(
            torch.split(flat, BLOCK_VALUES, -1), torch.split(self.signs, BLOCK_VALUES), strict=True
        )
        for values, signs in pieces:  # in blocks: no copy of all the draws
            missing = -len(signs) % NUM_PROJECTIONS
            signed = torch.nn.functional.pad(values * signs, (0, missing))
            sums += signed.reshape(*flat.shape[:2], -1, NUM_PROJECTIONS).sum(-2)
        return {
            name: flat[..., self.places].cpu().numpy(),
            f"{name}_projection": (sums * (NUM_PROJECTIONS / len(self.signs)) ** 0.5).cpu().numpy(),
        }
