"""Keep draws as they come: from chains to an `xarray.DataTree` in ArviZ's schema.

Draws of a very large site are kept for some of its coordinates and a few projections only; every
coordinate has its running moments.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.inference.program.density import Blocks, Density
from ppl_fe.inference.program.dimensions import Labels
from ppl_fe.inference.record.running_moments import RunningMoments
from ppl_fe.inference.record.zarr_folder import Arrays, dimension_names
from ppl_fe.inference.record.zarr_store import Store
from ppl_fe.inference.step.step_function import Statistics

# Above this many values a site's draws are kept for a fixed random subset of its coordinates
# and a few random projections only.
LARGEST_KEPT = 10**7
NUM_SUBSET, NUM_PROJECTIONS = 100, 16
MOMENT_SUMS = 6  # vectors of each chain
BLOCK_VALUES = 2**20  # worked on at a time
FLUSH_SECONDS = 5.0  # after which draws go to the store, however few
STATISTICS = (
    "lp",
    "loss",
    "gradient_norm",
    "step_size",
    "configurational_temperature",
    "stiff_temperature",
)
AVERAGED = {
    "loss",
    "configurational_temperature",
    "stiff_temperature",
    "block_temperature",
    "acceptance_rate",
}
OF_ANY = {"diverging"}  # whether any of a draw's steps did
MOMENTS = ("mean", "sd", "r_hat", "ess")


class Recorder:
    """Collect kept draws in blocks; a block goes to memory and, with a store, to disk.

    Args:
        density: has the sites and their transforms.
        blocks: the runs of coordinates whose temperature is followed.
        num_chains: C.
        num_samples: S, draws to keep of each chain.
        store: where draws go on disk. Default nowhere.
        num_groups: equal consecutive groups of chains, each with its own target and moments.
            Default 1.
        own_statistics: names of what the sampler alone has to keep, (C,) a draw each. Default
            none.
        halves: `halve` will be called: hold the unconstrained draws, too, where they are not too
            many. Default False.

    Attributes:
        num_draws: kept so far, of each chain.
        moments: of every coordinate.
    """

    def __init__(
        self,
        density: Density,
        blocks: Blocks,
        num_chains: int,
        num_samples: int,
        store: Store | None = None,
        num_groups: int = 1,
        own_statistics: tuple[str, ...] = (),
        halves: bool = False,
    ) -> None:
        self.density, self.store, self.num_draws = density, store, 0
        self._num_groups = num_groups
        size, dtype, device = density.num_parameters, density.dtype, density.device
        block = max(1, min(256, num_samples, BLOCK_VALUES // (num_chains * size)))
        self._positions = torch.empty((num_chains, block, size), dtype=dtype, device=device)
        self.moments = RunningMoments(num_chains, size, num_samples, dtype=dtype, device=device)
        self._reduced = {
            site.name: Projection(site.size, density.device)
            for site in (*density.sites, *density.deterministic)
            if density.is_static and num_chains * num_samples * site.size > LARGEST_KEPT
        }
        if store is not None:
            store.labels = self.labels
        self._names = list(blocks)
        sizes = [block.stop - block.start for block in blocks.values()]
        self._sizes = torch.tensor([*sizes, 1], dtype=dtype, device=device)
        self._scalars = STATISTICS + own_statistics
        self._kept_positions: list[Tensor] | None = None
        if halves and num_chains * num_samples * size <= LARGEST_KEPT:
            self._kept_positions = []
        rows = len(self._scalars) + (len(blocks) if len(blocks) > 1 else 0)
        self._statistics = torch.empty((block, num_chains, rows), dtype=dtype, device=device)
        self._filled = 0
        self._kept: dict[str, list[Arrays]] = {"posterior": [], "sample_stats": []}
        self._last_flush = time.monotonic()

    @property
    def labels(self) -> Labels:
        """Name the axes of what is kept; of a reduced site they are its own."""
        return self.density.labels.without([*self._reduced])

    def add(
        self,
        position: Tensor,
        statistics: Statistics,
        loss: Tensor,
        virials: Tensor,
        step_size: Tensor,
        own_statistics: tuple[Tensor, ...] = (),
    ) -> bool:
        """Keep one draw of every chain; return whether all are in the store, and a commit is due.

        Args:
            position: (C, D).
            statistics: of the step.
            loss: (C,), mean −log-likelihood of the step's data, in nats a datum.
            virials: (C, L + 1), temperatures times their numbers of coordinates: of the blocks,
                and along the stiffest direction.
            step_size: (C,).
            own_statistics: (C,) each, of the sampler alone.
        """
        row, filled = self._statistics[self._filled], len(self._scalars)
        self._positions[:, self._filled] = position
        if self._kept_positions is None:
            self.moments.add(position)
        torch.stack(
            (
                statistics.log_density,
                loss,
                statistics.gradient_norm,
                step_size,
                virials[:, :-1].sum(-1) / self.density.num_parameters,
                virials[:, -1],
                *own_statistics,
            ),
            -1,
            out=row[:, :filled],
        )
        if row.shape[1] > filled:
            torch.div(virials[:, :-1], self._sizes[:-1], out=row[:, filled:])
        self._filled += 1
        self.num_draws += 1
        late = self.store is not None and time.monotonic() - self._last_flush > FLUSH_SECONDS
        if self._filled == len(self._statistics) or late:
            self.flush()
            return self.store is not None and self.store.is_due()
        return False

    def flush(self) -> None:
        """Move the present block of draws out of the buffer."""
        if not self._filled:
            return
        self._last_flush = time.monotonic()
        if self._kept_positions is not None:
            self._kept_positions.append(self._positions[:, : self._filled].clone())
        posterior: Arrays = {}
        for name, value in self.density.constrain(self._positions[:, : self._filled]).items():
            if name in self._reduced:
                posterior |= self._reduced[name].reduce(name, value)
            else:
                posterior[name] = np.array(_numpy(value))  # a copy: the buffer is used again
        # (S', C, rows) -> rows of (C, S')
        rows = np.array(_numpy(self._statistics[: self._filled].permute(2, 1, 0)))
        count = len(self._scalars)
        stats = dict(zip(self._scalars, rows[:count], strict=True))
        stats |= {name: stats[name] > 0 for name in OF_ANY & stats.keys()}
        if len(rows) > count:
            stats["block_temperature"] = np.moveaxis(rows[count:], 0, -1)
        groups = {"posterior": posterior, "sample_stats": stats}
        for group, arrays in groups.items():
            self._kept[group].append(arrays)
        if self.store is not None:
            self.store.append(groups)
        self._filled = 0

    def halve(self) -> None:
        """Let every second draw go, the first one to begin with, so that as many fit again.

        What is averaged over a draw's steps is averaged over the two, and so means the same as in
        the draws to come.
        """
        draws, _ = self.contents()
        for group, arrays in draws.items():
            later = {name: values[:, 1::2] for name, values in arrays.items()}
            for name in AVERAGED & later.keys():
                later[name] = (later[name] + arrays[name][:, : 2 * later[name].shape[1] : 2]) / 2
            for name in OF_ANY & later.keys():
                later[name] = later[name] | arrays[name][:, : 2 * later[name].shape[1] : 2]
            self._kept[group] = [later]
        if self._kept_positions is not None:
            self._kept_positions[:] = [torch.cat(self._kept_positions, 1)[:, 1::2]]
        else:  # of too many coordinates the moments are those of the draws from here on
            self.moments = self._moments_of(self.num_draws - self.num_draws // 2)
        self.num_draws //= 2
        if self.store is not None:
            self.store.replace({group: blocks[0] for group, blocks in self._kept.items()})

    def state(self) -> dict[str, Tensor]:
        """Give what `restore` takes beside the draws: sums of their moments, or their positions."""
        if not self._kept_positions:
            return self.moments.state()
        return {**self.moments.state(), "positions": torch.cat(self._kept_positions, 1)}

    def restore(self, draws: Mapping[str, Arrays], state: Mapping[str, Tensor]) -> None:
        """Go on after the draws that a store holds, with what `state` gave."""
        for group, arrays in draws.items():
            self._kept[group] = [arrays]
            self.num_draws = next(iter(arrays.values())).shape[1]
        if "positions" in state:
            self._kept_positions = [state["positions"].to(self._positions)]
        planned = int(state["draws"][1])
        if planned != self.moments.num_samples:  # since draws were let go
            self.moments = self._moments_of(planned)
        self.moments.restore(state)

    def _moments_of(self, num_samples: int) -> RunningMoments:
        chains, _, size = self._positions.shape
        dtype, device = self._positions.dtype, self._positions.device
        return RunningMoments(chains, size, num_samples, dtype=dtype, device=device)

    def contents(self) -> tuple[dict[str, Arrays], dict[str, Tensor]]:
        """Return what `restore` takes: all draws so far, and the sums of their moments."""
        self.flush()
        draws = {
            group: {name: np.concatenate([b[name] for b in blocks], axis=1) for name in blocks[0]}
            for group, blocks in self._kept.items()
        }
        return draws, self.moments.state()

    def bytes_to_come(self) -> int:
        """Predict the memory that draws and moments take in the end, beside what there is now."""
        chains, _, size = self._positions.shape
        draws, each = self.moments.num_samples, self._statistics.shape[2]
        for site in (*self.density.sites, *self.density.deterministic):
            reduced = NUM_SUBSET + NUM_PROJECTIONS if site.name in self._reduced else None
            each += reduced or prod(site.support_shape)
        held = 2 * draws * each  # once draw by draw, and once put together
        if self._kept_positions is not None:
            held += 2 * draws * size
        values = chains * (held + MOMENT_SUMS * size) + self._positions.numel()
        return values * self._positions.element_size()

    def losses(self) -> NDArray[Any]:
        """Return the mean minibatch losses (C, S) of the draws kept so far."""
        blocks = [block["loss"] for block in self._kept["sample_stats"]]
        recent = _numpy(self._statistics[: self._filled, :, STATISTICS.index("loss")].T)
        return np.concatenate([*blocks, recent], axis=1)

    def finish(
        self,
        failed: Mapping[int, str],
        attributes: Mapping[str, Any],
        data: Mapping[str, xr.Dataset] | None = None,
        *,
        complete: bool = True,
    ) -> xr.DataTree:
        """Make a DataTree of all draws, without the chains that failed, and close the store.

        Args:
            failed: chain -> why it failed.
            attributes: of the tree; `tuned_measured_temperature` (C,), along the stiffest
                direction, is added.
            data: more groups, by name; none by default.
            complete: the run has all its draws. Default True.
        """
        draws, _ = self.contents()
        if self._kept_positions:
            positions = torch.cat(self._kept_positions, 1)
            chains, count, size = positions.shape
            self.moments = RunningMoments(
                chains, size, count, dtype=positions.dtype, device=positions.device
            )
            for position in positions.unbind(1):
                self.moments.add(position)
        good = [chain for chain in range(len(self._positions)) if chain not in failed]
        attrs = {name: plain(value) for name, value in attributes.items()}
        measured = np.full(len(self._positions), np.nan)
        measured[good] = draws["sample_stats"]["stiff_temperature"][good].mean(1)
        attrs["tuned_measured_temperature"] = measured.tolist()
        groups = {
            group: self._dataset({name: v[good] for name, v in arrays.items()}, good, attrs)
            for group, arrays in draws.items()
        }
        groups |= {**(data or {}), "moments": self._moments(good)}
        tree = xr.DataTree.from_dict(groups)
        tree.attrs.update(attrs)
        if self.store is not None:
            self.store.finish(tree, complete=complete)
        return tree

    def _dataset(self, arrays: Arrays, chains: list[int], attrs: dict[str, Any]) -> xr.Dataset:
        data = {
            name: (dimension_names(name, values.ndim, self.labels), values)
            for name, values in arrays.items()
        }
        draws = np.arange(next(iter(arrays.values())).shape[1])
        coords: dict[str, Any] = {"chain": chains, "draw": draws}
        if "block_temperature" in arrays:
            coords["block"] = self._names
        for name, subset in self._reduced.items():
            if name in arrays:
                coords[f"{name}_dim_0"] = _numpy(subset.places)
        used = {dim for dims, _ in data.values() for dim in dims}
        coords |= self.labels.along(sorted(used), [*coords])
        return xr.Dataset(data, coords=coords, attrs=attrs)

    def _moments(self, chains: list[int]) -> xr.Dataset:
        """Lay out site -> (moment, *shape), unconstrained; (group, moment, *shape) if several."""
        each = len(self._positions) // self._num_groups
        tables = []
        for group in range(self._num_groups):
            own = [chain for chain in chains if chain // each == group]
            if own:
                found = self.moments.summary(own)
                tables.append(torch.stack([getattr(found, name) for name in MOMENTS]))
            else:
                shape = (len(MOMENTS), self.density.num_parameters)
                tables.append(torch.full(shape, torch.nan, dtype=self.density.dtype))
        table, lead = torch.stack(tables), ["group", "moment"]
        if self._num_groups == 1:
            table, lead = table[0], lead[1:]
        data: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
        for name, values in self.density.split(table).items():
            named = self._unconstrained(name, tuple(values.shape[len(lead) :]))
            data[name] = ((*lead, *named), _numpy(values))
        coords = self.labels.along(sorted({dim for dims, _ in data.values() for dim in dims}))
        return xr.Dataset(data, coords={"moment": list(MOMENTS), **coords})

    def _unconstrained(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Name the axes of unconstrained values: as those of the values, where they are as long."""
        support = next(site.support_shape for site in self.density.sites if site.name == name)
        same = shape if len(shape) == len(support) else ()
        return tuple(
            dim if k < len(same) and shape[k] == support[k] else f"{name}_dim_{k}"
            for k, dim in enumerate(self.labels.of(name, len(shape)))
        )


class Projection:
    """Fixed random coordinates, and fixed random projections, of a large site.

    Coordinate i goes to projection i mod 16 with a random sign: Σ ±w_i/√(D/16). Each sees a
    sixteenth of the coordinates; a byte a coordinate is kept, not sixteen floats.

    Args:
        size: number of coordinates.
        device: that of the draws.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.places = torch.tensor(sorted(random.Random(size).sample(range(size), NUM_SUBSET)))
        generator = torch.Generator().manual_seed(size)
        signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
        self.signs = signs.mul_(2).sub_(1).to(device)

    def reduce(self, name: str, value: Tensor) -> Arrays:
        """Reduce values (C, S, *shape) to the subset (C, S, 100) and projections (C, S, 16)."""
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


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return np.asarray(tensor.detach().cpu().numpy())


def plain(value: Any) -> Any:
    """Make a value into one that JSON, zarr and netCDF attributes can hold."""
    if isinstance(value, Tensor | np.ndarray):
        return np.asarray(value).tolist()
    if isinstance(value, bool | np.bool_):
        return int(value)
    return json.dumps(value) if isinstance(value, Mapping) else value
