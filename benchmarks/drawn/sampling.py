"""Sample small programs by every sampler, in every way to run them."""

from __future__ import annotations

import signal
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import MCMC
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from drawn import Case, first_of, randn

SAMPLERS = (fe.SGLD, fe.PSGLD, fe.SGHMC, fe.SGNHT, fe.BAOAB)

# Programs ---------------------------------------------------------------------------------------

N, GROUPS = 120, 4
X = randn(N, 2, seed=3)
Y = X @ torch.tensor([1.0, -0.5]) + 0.3 * randn(N, seed=4)
GROUP = torch.arange(N) % GROUPS
GRID = randn(6, 5, seed=5)


def regression(x: Tensor, y: Tensor, size: int | None = None) -> None:
    """Regress y on x, on all the data or on minibatches."""
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(x.new_tensor(-1.0), 0.5))
    with pyro.plate("data", len(y), subsample_size=size):
        rows, targets = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(rows @ slope, sigma), obs=targets)


def on_batches(x: Tensor, y: Tensor) -> None:
    """Regress on the minibatches of a loader."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", N, subsample_size=len(y)):
        pyro.sample("y", dist.Normal(x @ slope, 0.5), obs=y)


def several_sites() -> None:
    """Sample sites of many supports, and a deterministic one."""
    share = pyro.sample("share", dist.Beta(2.0, 3.0))
    simplex = pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    factor = pyro.sample("factor", dist.LKJCholesky(2, 1.0))
    low = pyro.sample("low", dist.Uniform(-1.0, 2.0))
    high = pyro.sample("high", dist.Uniform(low, 3.0))  # on a support that depends on a site
    mean = pyro.deterministic("mean", share * high + simplex[0])
    with poutine.scale(scale=2.0):
        pyro.sample("y", dist.Normal(mean + factor[1, 0], 0.5), obs=torch.tensor(0.7))


def hierarchical(group: Tensor, y: Tensor, size: int | None = None) -> None:
    """Give every group a mean of its own; the number of groups is read from the data."""
    centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", int(group.max()) + 1):
        means = pyro.sample("means", dist.Normal(centre, spread))
    with pyro.plate("data", len(y), subsample_size=size) as rows:
        pyro.sample("y", dist.Normal(means[group[rows]], 0.5).mask(y[rows] < 1.0), obs=y[rows])


def crossed(y: Tensor) -> None:
    """Subsample two plates that cross."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with (
        pyro.plate("rows", 6, subsample_size=2, dim=-2) as i,
        pyro.plate("columns", 5, subsample_size=3, dim=-1) as j,
    ):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[i[:, None], j])


def branching() -> None:
    """Branch on a latent value, so that no graph and no `vmap` takes the program."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    if w > 0:
        pyro.factor("more", -w)


def loader(*tensors: Tensor) -> DataLoader[Any]:
    """Shuffle data in minibatches of 20."""
    return DataLoader(TensorDataset(*tensors), batch_size=20, shuffle=True)


# Sampling ---------------------------------------------------------------------------------------

FULL: tuple[Any, ...] = (X, Y)
PARTS: tuple[Any, ...] = (X, Y, 20)
FIXED: dict[str, Any] = {"step_size": 0.0005}
SHORT: dict[str, Any] = {"num_samples": 60, "warmup_steps": 60, "num_chains": 2, "seed": 7}


def sample(kernel: fe.Kernel, *data: Any, **changed: Any) -> xr.DataTree:
    """Run two short chains."""
    return fe.sample(kernel, *data, **{**SHORT, "progress_bar": False, **changed})


def by(data: tuple[Any, ...], kind: type[fe.Kernel] = fe.SGLD, /, **settings: Any) -> Any:
    """Sample the regression by a kernel; the settings that SHORT names are those of the run."""
    own = {"compile", "chain_method", "initial_params", "thinning", *SHORT}
    run = {name: settings.pop(name) for name in own & set(settings)}
    return sample(kind(regression, **settings), *data, **run)


def scheduled(name: str, *arguments: Any, **settings: Any) -> Any:
    """Sample by a schedule of step sizes."""
    schedule = first_of(name, "ppl_fe.schedules", "ppl_fe.inference.schedules")
    return by(PARTS, step_size=schedule(*arguments, **settings), warmup_steps=20)


def inside_pyro(data: tuple[Any, ...], **settings: Any) -> Any:
    """Run a kernel inside Pyro's own MCMC."""
    mcmc = MCMC(fe.BAOAB(regression, **settings), 60, 60, disable_progbar=True)
    mcmc.run(*data)
    return mcmc.get_samples(group_by_chain=True)


@dataclass
class Pressing:
    """Keep one step size, as a schedule, and press Ctrl-C before the step of this number."""

    step_size: float
    at: int | None = field(default=None, repr=False)  # a resumed run has to be of an equal call

    def __call__(self, step: int) -> float:
        """Give the step size."""
        if step == self.at:
            self.at = None
            signal.raise_signal(signal.SIGINT)
        return self.step_size


def resumed(kind: type[fe.Kernel], *data: Any, **settings: Any) -> Any:
    """Cut a run short in its second block of draws, go on with it, and give both runs whole."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in the background
    program = on_batches if isinstance(data[0], DataLoader) else regression
    method = settings.pop("chain_method", "vectorized")
    how: dict[str, Any] = {"num_samples": 280, "warmup_steps": 20, "chain_method": method}

    def run(at: int | None, **stored: Any) -> xr.DataTree:
        kernel = kind(program, step_size=Pressing(0.0005, at), **settings)
        return sample(kernel, *data, **how, **stored)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        if not 256 < run(290, save_to=path)["posterior"].sizes["draw"] < 280:
            raise RuntimeError("the run was not cut short in its second block")
        again = run(None, save_to=path, resume=True)
        return {"whole": run(None), "resumed": again, "stored": xr.load_datatree(path)}


class Called:
    """Stand for a program, count its calls, and press Ctrl-C in the one of this number."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.calls = at, 0

    def __call__(self, *data: Any) -> None:
        """Run the program."""
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(signal.SIGINT)
        regression(*data)


def resumed_auto(kind: type[fe.Kernel]) -> Any:
    """Do the same with automatic settings, which leave no schedule to press in."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    how: dict[str, Any] = {"num_samples": 280, "warmup_steps": 20, "compile": "eager"}
    counted = Called()
    whole = sample(kind(counted), *PARTS, **how)
    with tempfile.TemporaryDirectory() as folder:
        how["save_to"] = Path(folder) / "run.zarr"
        try:  # an eager step is a call, and few calls follow the last step
            part = sample(kind(Called(counted.calls - 10)), *PARTS, **how)
        except KeyboardInterrupt as error:
            raise RuntimeError("the run was stopped before its first draw") from error
        if not 0 < part["posterior"].sizes["draw"] < 280:
            raise RuntimeError("the run was not cut short")
        return {"whole": whole, "resumed": sample(kind(regression), *PARTS, resume=True, **how)}


CASES: dict[str, Case] = {}
for _kind in SAMPLERS:
    _name = _kind.__name__.lower()
    CASES[f"{_name}_full"] = partial(by, FULL, _kind)
    CASES[f"{_name}_minibatch"] = partial(by, PARTS, _kind)
    _own = {} if _kind in (fe.SGLD, fe.PSGLD) else {"friction": 0.5}
    CASES[f"{_name}_by_hand"] = partial(by, PARTS, _kind, **FIXED, **_own)
    CASES[f"{_name}_resumed"] = partial(resumed, _kind, *PARTS, **_own)
CASES |= {
    "full_data": partial(by, PARTS, gradient="full_data"),
    "control_variate": partial(by, PARTS, fe.BAOAB, gradient="control_variate"),
    "control_variate_by_hand": partial(
        by, PARTS, gradient="control_variate",
        initial_params={"slope": torch.zeros(2, 2), "sigma": torch.zeros(2)}, **FIXED,
    ),
    "epoch": partial(by, PARTS, minibatches="epoch"),
    "micro_batches": partial(by, PARTS, micro_batches=2),
    "epoch_micro_batches": partial(by, PARTS, fe.BAOAB, minibatches="epoch", micro_batches=2),
    "dense_full": partial(by, FULL, fe.BAOAB, metric="dense"),
    "dense_minibatch": partial(by, PARTS, metric="dense"),
    "cyclical": partial(scheduled, "Cyclical", 0.005, num_steps=100, exploration=0.3),
    "polynomial": partial(scheduled, "Polynomial", 0.005, offset=20.0),
    "hot": partial(by, PARTS, fe.SGHMC, temperature=2.0),
    "cold": partial(by, PARTS, temperature=0.0, **FIXED),
    "thinning": partial(by, PARTS, fe.SGNHT, thinning=3, num_chains=3),
    "no_warmup": partial(by, PARTS, warmup_steps=0, **FIXED),
    "initial_params": partial(
        by, FULL, fe.BAOAB, initial_params={"slope": torch.ones(2, 2), "sigma": -torch.ones(2)}
    ),
    "eager": partial(by, PARTS, fe.BAOAB, compile="eager"),
    "traced": partial(by, PARTS, fe.BAOAB, compile="traced"),
    "compiled": partial(by, PARTS, fe.BAOAB, compile="compiled"),
    "sequential": partial(by, PARTS, fe.BAOAB, chain_method="sequential"),
    "parallel_full": partial(by, FULL, fe.BAOAB, chain_method="parallel"),
    "parallel_minibatch": partial(by, PARTS, chain_method="parallel", num_chains=3),
    "failed_chain": partial(
        by, FULL, fe.BAOAB, step_size=0.0005, friction=1.0,
        initial_params={"slope": torch.zeros(2, 2), "sigma": torch.tensor([torch.inf, 0.0])},
    ),
    "loader": lambda: sample(fe.BAOAB(on_batches), loader(X, Y)),
    "loader_epoch": lambda: sample(fe.SGLD(on_batches, minibatches="epoch"), loader(X, Y)),
    "float64": lambda: sample(fe.BAOAB(regression), X.double(), Y.double(), 20),
    "several_sites": lambda: sample(fe.BAOAB(several_sites)),
    "hierarchical": lambda: sample(fe.BAOAB(hierarchical), GROUP, Y),
    "hierarchical_minibatch": lambda: sample(fe.SGHMC(hierarchical), GROUP, Y, 20),
    "crossed_plates": lambda: sample(fe.SGLD(crossed), GRID),
    "branching": lambda: sample(fe.SGLD(branching, step_size=0.1)),
    "inside_pyro_full": partial(inside_pyro, FULL),
    "inside_pyro_minibatch": partial(inside_pyro, PARTS, **FIXED),
    "resumed_psgld_auto": partial(resumed_auto, fe.PSGLD),
    "resumed_baoab_auto": partial(resumed_auto, fe.BAOAB),
    "resumed_dense": partial(resumed, fe.BAOAB, *FULL, metric="dense", friction=0.5),
    "resumed_epoch": partial(resumed, fe.SGLD, *PARTS, minibatches="epoch", micro_batches=2),
    "resumed_control_variate": partial(resumed, fe.SGLD, *PARTS, gradient="control_variate"),
    "resumed_sequential": partial(resumed, fe.SGLD, *PARTS, chain_method="sequential"),
    "resumed_loader": lambda: resumed(fe.SGLD, loader(X, Y)),
}  # fmt: skip
