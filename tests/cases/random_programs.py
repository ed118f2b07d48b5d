"""Small random programs, each with moments that are known without any chain.

A program's number decides all about it: its shape (`SHAPES`, in turn), its size, scales over many
decades, correlations and data. What is known of it are draws of its own prior, site by site,
weighted by the likelihood where there are data, or a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_fe.inference.program.equal_forms import OF_PRIORS, equal_forms

Array = NDArray[np.float64]
View = Callable[[Array], Array]

CHUNK, MOST_CHUNKS = 100_000, 32
PRECISE = 0.01  # error of a reference's mean in sd, and of its sd as a share


class RandomProgram(NamedTuple):
    """A program without arguments.

    views: site -> what is compared of its values, where these have no fourth moment.
    exact: site -> mean and sd, where they are known in closed form.
    """

    shape: str
    model: Callable[[], None]
    views: Mapping[str, View] = {}
    exact: Mapping[str, tuple[Array, Array]] = {}

    def seen(self, name: str, values: Array) -> Array:
        """What is compared of a site's values."""
        return self.views[name](values) if name in self.views else values


class Known(NamedTuple):
    """Mean and sd of every value of a site (K,), and their standard errors in units of the sd."""

    mean: Array
    sd: Array
    mean_error: Array
    sd_error: Array


class Dice:
    """Throws of one program's number."""

    def __init__(self, number: int) -> None:
        self.generator = np.random.default_rng([20261129, number])

    def between(self, low: float, high: float) -> float:
        return float(self.generator.uniform(low, high))

    def scale(self, low: float = -4, high: float = 4) -> float:
        """10 to the power of something between."""
        return float(10 ** self.between(low, high))

    def size(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return int(self.generator.integers(low, high + 1))

    def normal(self, *shape: int) -> Tensor:
        return torch.tensor(self.generator.standard_normal(shape), dtype=torch.float32)

    def scales(self, size: int, low: float = -4, high: float = 4) -> Tensor:
        return torch.tensor([self.scale(low, high) for _ in range(size)])

    def one_of(self, choices: list[Any]) -> Any:
        return choices[int(self.generator.integers(len(choices)))]


def program(number: int) -> RandomProgram:
    """Make the program of a number."""
    return SHAPES[number % len(SHAPES)](Dice(number))


def known(program: RandomProgram, seed: int = 0) -> dict[str, Known]:
    """Find the moments of what is compared, to a hundredth of an sd, or as far as draws go."""
    found = {
        name: Known(np.atleast_1d(mean), np.atleast_1d(sd), np.zeros(1), np.zeros(1))
        for name, (mean, sd) in program.exact.items()
    }
    if found:
        return found
    chunks, weights = list[dict[str, Array]](), list[Array]()
    with torch.random.fork_rng(), torch.no_grad():
        pyro.set_rng_seed(seed)
        for count in range(1, MOST_CHUNKS + 1):
            values, logs = _ancestors(program)
            chunks.append(values)
            weights.append(logs)
            if count & (count - 1):
                continue
            found = {
                name: _moments(np.concatenate([c[name] for c in chunks]), np.concatenate(weights))
                for name in values
            }
            if all(max(k.mean_error.max(), k.sd_error.max()) < PRECISE for k in found.values()):
                break
    return found


def _ancestors(program: RandomProgram) -> tuple[dict[str, Array], Array]:
    """Draw from the prior: site -> (CHUNK, K), and the log-likelihood (CHUNK,) of each draw."""
    # torch's own sampler of LKJ factors has another law: findings/lkj_cholesky_draws_another_law.sh
    with equal_forms(OF_PRIORS), pyro.plate("ancestors", CHUNK, dim=-2):
        trace = poutine.trace(program.model).get_trace()
    trace.compute_log_prob()
    values, logs = dict[str, Array](), np.zeros(CHUNK)
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        if site["is_observed"]:
            logs += site["log_prob"].double().reshape(CHUNK, -1).sum(-1).numpy()
        else:
            values[name] = program.seen(name, site["value"].double().reshape(CHUNK, -1).numpy())
    return values, logs


def _moments(values: Array, logs: Array) -> Known:
    weights = np.exp(logs - logs.max())
    weights = (weights / weights.sum())[:, None]
    mean = (weights * values).sum(0)
    away = values - mean
    variance = (weights * away**2).sum(0)
    sd = np.sqrt(variance)
    safe = np.where(sd > 0, sd, 1.0)
    mean_error = np.sqrt((weights**2 * away**2).sum(0)) / safe
    sd_error = np.sqrt((weights**2 * (away**2 - variance) ** 2).sum(0)) / (2 * safe**2)
    return Known(mean, sd, mean_error, sd_error)


def log(x: Array) -> Array:
    return np.log(np.maximum(x, 1e-300))


def far(loc: Any, scale: Any) -> View:
    """asinh((x − loc)/scale): linear near the middle, logarithmic in the tails."""
    loc, scale = (np.asarray(value, dtype=np.float64) for value in (loc, scale))
    return lambda x: np.arcsinh((x - loc) / scale)


# Single sites: each gives what draws it, and how it is looked at.
Site = tuple[Any, View | None]


def of_normals(dice: Dice) -> Site:
    scale = dice.scales(dice.size(1, 5), -6, 6)
    loc = scale * dice.normal(len(scale)) * dice.scale(-1, 1.5)
    return dist.Normal(loc, scale).to_event(1), None


def of_correlated(dice: Dice) -> Site:
    size = dice.size(2, 6)
    axes, _ = torch.linalg.qr(dice.normal(size, size).double())
    sizes = torch.logspace(0, -dice.between(0, 2), size, dtype=torch.float64)
    scale = dice.scales(size, -3, 3).double()
    root = torch.linalg.qr(((scale[:, None] * axes) * sizes).mT)[1].mT
    root = root * root.diagonal().sign()
    return dist.MultivariateNormal(dice.normal(size) * scale.float(), scale_tril=root.float()), None


def of_student(dice: Dice) -> Site:
    scale = dice.scales(dice.size(1, 4))
    loc = scale * dice.normal(len(scale))
    df = dice.one_of([1.0, 2.0, 3.0, 5.0, 10.0])
    return dist.StudentT(df, loc, scale).to_event(1), far(loc, scale)


def of_gamma(dice: Dice) -> Site:
    rate = dice.scales(dice.size(1, 4))
    return dist.Gamma(dice.between(0.3, 5), rate).to_event(1), None


def of_half_cauchy(dice: Dice) -> Site:
    return dist.HalfCauchy(dice.scales(dice.size(1, 3))).to_event(1), log


def of_inverse_gamma(dice: Dice) -> Site:
    return dist.InverseGamma(dice.between(0.5, 3), torch.tensor(dice.scale())), log


def of_beta(dice: Dice) -> Site:
    a, b = dice.between(0.3, 8), dice.between(0.3, 8)
    return dist.Beta(a * torch.ones(dice.size(1, 3)), b).to_event(1), None


def of_dirichlet(dice: Dice) -> Site:
    return dist.Dirichlet(dice.scales(dice.size(2, 6), -0.5, 1)), None


def of_lkj(dice: Dice) -> Site:
    return dist.LKJCholesky(dice.size(2, 4), dice.between(0.5, 4)), None


def of_uniform(dice: Dice) -> Site:
    width = dice.scales(dice.size(1, 4))
    low = dice.normal(len(width)) * width
    return dist.Uniform(low, low + width).to_event(1), None


def of_log_normal(dice: Dice) -> Site:
    return dist.LogNormal(dice.between(-5, 5), torch.tensor(dice.between(0.1, 2))), log


def of_two_bumps(dice: Dice) -> Site:
    """Bumps of equal width, some sd apart."""
    apart, share = dice.between(2, 15), dice.between(0.15, 0.85)
    middle, scale = dice.between(-3, 3), dice.scale(-2, 2)
    bumps = dist.Normal((middle + torch.tensor([-0.5, 0.5]) * apart) * scale, scale)
    weights = dist.Categorical(probs=torch.tensor([share, 1 - share]))
    return dist.MixtureSameFamily(weights, bumps), None


def of_spike_and_slab(dice: Dice) -> Site:
    narrow, share = dice.scale(-2.5, -0.5), dice.between(0.2, 0.8)
    both = dist.Normal(torch.tensor([0.0, dice.between(-1, 1)]), torch.tensor([narrow, 1.0]))
    weights = dist.Categorical(probs=torch.tensor([share, 1 - share]))
    return dist.MixtureSameFamily(weights, both), None


def of_skew(dice: Dice) -> Site:
    return dist.Weibull(torch.tensor(dice.scale(-3, 3)), dice.between(0.6, 3)), None


SITES: list[Callable[[Dice], Site]] = [
    of_normals,
    of_correlated,
    of_student,
    of_gamma,
    of_half_cauchy,
    of_inverse_gamma,
    of_beta,
    of_dirichlet,
    of_lkj,
    of_uniform,
    of_log_normal,
    of_two_bumps,
    of_spike_and_slab,
    of_skew,
]


def sites(shape: str, makers: list[Callable[[Dice], Site]], dice: Dice) -> RandomProgram:
    """Independent sites."""
    made = [make(dice) for make in makers]

    def model() -> None:
        for k, (law, _) in enumerate(made):
            pyro.sample(f"x{k}", law)

    return RandomProgram(shape, model, {f"x{k}": v for k, (_, v) in enumerate(made) if v})


def one_site(make: Callable[[Dice], Site]) -> Callable[[Dice], RandomProgram]:
    return lambda dice: sites(make.__name__.removeprefix("of_"), [make], dice)


def several(dice: Dice) -> RandomProgram:
    smooth = [make for make in SITES if make not in (of_two_bumps, of_spike_and_slab)]
    return sites("several", [dice.one_of(smooth) for _ in range(dice.size(2, 4))], dice)


def funnel(dice: Dice) -> RandomProgram:
    """Neal's: the sd of x goes through orders of magnitude."""
    size, spread = dice.size(1, 8), dice.between(0.3, 3)

    def model() -> None:
        level = pyro.sample("level", dist.Normal(0.0, spread))
        with pyro.plate("each", size):
            pyro.sample("x", dist.Normal(0.0, (level / 2).exp()))

    return RandomProgram("funnel", model, {"x": far(0.0, 1.0)})


def hierarchy(dice: Dice) -> RandomProgram:
    """Groups about a mean, centred or not, with a datum each."""
    size, unit, centred = dice.size(3, 5), dice.scale(-2, 2), dice.between(0, 1) < 0.5
    noise = unit * dice.between(0.2, 2)
    y = dice.between(0.2, 2) * unit * dice.normal(size)
    law = dice.one_of([dist.HalfNormal, dist.HalfCauchy, dist.Exponential])
    spread = law(torch.tensor(1 / unit if law is dist.Exponential else unit))

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, unit))
        tau = pyro.sample("tau", spread)
        with pyro.plate("groups", size):
            if centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(theta, noise), obs=y)

    return RandomProgram("centred" if centred else "noncentred", model, {"tau": log})


def square(dice: Dice) -> RandomProgram:
    """Only |w| is known."""
    y, noise = torch.tensor(dice.between(0.1, 4)), dice.scale(-1.3, 0)

    def model() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w.square(), noise), obs=y)

    return RandomProgram("square", model)


def ridge(dice: Dice) -> RandomProgram:
    """Only a product is known, and so no sign."""
    y, noise = torch.tensor(dice.between(0, 2)), dice.scale(-1.3, 0)

    def model() -> None:
        a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
        pyro.sample("y", dist.Normal(a * b, noise), obs=y)

    return RandomProgram("ridge", model)


def ring(dice: Dice) -> RandomProgram:
    radius, noise = torch.tensor(dice.between(0.5, 2)), dice.scale(-1.3, 0)

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x.norm(dim=-1), noise), obs=radius)

    return RandomProgram("ring", model)


def banana(dice: Dice) -> RandomProgram:
    bend, narrow, unit = dice.between(0.1, 2), dice.scale(-1.5, 0), dice.scale()

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, unit))
        pyro.sample("y", dist.Normal(bend * (x / unit).square(), narrow))

    return RandomProgram("banana", model)


def two_clusters(dice: Dice) -> RandomProgram:
    """A robust location between two groups of data that disagree."""
    apart, unit, df = dice.between(1, 20), dice.scale(-2, 2), dice.one_of([1.0, 2.0, 4.0])
    y = unit * torch.cat([dice.normal(dice.size(2, 4)), apart + dice.normal(dice.size(2, 4))])

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10 * unit))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.StudentT(df, mu, unit), obs=y)

    return RandomProgram("two clusters", model)


def labels(dice: Dice) -> RandomProgram:
    """A mixture whose components may change places."""
    apart = dice.between(0, 6)
    y = torch.cat([dice.normal(dice.size(2, 5)), apart + dice.normal(dice.size(2, 5))])
    weights = dist.Categorical(probs=torch.tensor([0.5, 0.5]))

    def model() -> None:
        means = pyro.sample("means", dist.Normal(torch.zeros(2), 4.0).to_event(1))
        both = dist.MixtureSameFamily(weights, dist.Normal(means, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", both, obs=y)

    return RandomProgram("labels", model)


def logistic(dice: Dice) -> RandomProgram:
    """Few labels, which may be separated, and a wide prior."""
    size, count, wide = dice.size(1, 3), dice.size(4, 12), dice.scale(-0.3, 1)
    x = dice.normal(count, size)
    y = (x.sum(-1) + dice.between(0, 1) * dice.normal(count) > 0).float()

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(size), wide).to_event(1))
        logits = w @ x.mT
        with pyro.plate("data", count):
            pyro.sample("y", dist.Bernoulli(logits=logits.reshape(*w.shape[:-2], count)), obs=y)

    return RandomProgram("logistic", model)


def counts(dice: Dice) -> RandomProgram:
    size = dice.size(3, 8)
    exposure, x = dice.scales(size, -1, 1), dice.normal(size)
    y = torch.tensor(dice.generator.poisson(exposure.numpy()), dtype=torch.float32)

    def model() -> None:
        a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size):
            pyro.sample("y", dist.Poisson(exposure * (a + b * x).exp()), obs=y)

    return RandomProgram("counts", model)


def few_data(dice: Dice) -> RandomProgram:
    """Mean and sd of two to four numbers: heavy tails."""
    unit = dice.scale(-3, 3)
    y = unit * dice.normal(dice.size(2, 4))

    def model() -> None:
        sigma = pyro.sample("sigma", dist.HalfCauchy(unit))
        mu = pyro.sample("mu", dist.Normal(0.0, 5 * unit))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, sigma), obs=y)

    return RandomProgram("few data", model, {"sigma": log, "mu": far(0.0, unit)})


def at_a_bound(dice: Dice) -> RandomProgram:
    """Data beyond the end of the support."""
    unit = dice.scale()
    y, noise = torch.tensor(unit * dice.between(1, 1.5)), unit * dice.scale(-1, 0)

    def model() -> None:
        x = pyro.sample("x", dist.Uniform(0.0, unit))
        pyro.sample("y", dist.Normal(x, noise), obs=y)

    return RandomProgram("at a bound", model)


def walk(dice: Dice) -> RandomProgram:
    length, step, noise = dice.size(3, 8), dice.scale(-1, 0.5), dice.scale(-0.5, 0.5)
    y = dice.normal(length)

    def model() -> None:
        x = torch.tensor(0.0)
        for t in range(length):
            x = pyro.sample(f"x{t}", dist.Normal(x, step))
            pyro.sample(f"y{t}", dist.Normal(x, noise), obs=y[t])

    return RandomProgram("walk", model)


def regression(dice: Dice) -> RandomProgram:
    """Columns in raw units, far from their origin; flat enough priors, sd known."""
    size, count = dice.size(1, 5), 60
    spread = dice.scales(size, -3, 3).double()
    columns = spread * (dice.normal(count, size).double() + dice.scale(-1, 1.5))
    x = torch.cat([torch.ones(count, 1, dtype=torch.float64), columns], 1)
    y = dice.normal(count).double()
    wide = torch.tensor([1e3, *(1e3 / spread)], dtype=torch.float64)
    precision = x.mT @ x + torch.diag(wide**-2)
    mean = torch.linalg.solve(precision, x.mT @ y)
    sd = torch.linalg.inv(precision).diagonal().sqrt()

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(size + 1).double(), wide).to_event(1))
        with pyro.plate("data", count):
            pyro.sample("y", dist.Normal(x @ w, torch.tensor(1.0).double()), obs=y)

    return RandomProgram("regression", model, exact={"w": (mean.numpy(), sd.numpy())})


def rate(dice: Dice) -> RandomProgram:
    """Gamma and Poisson, by the closed form."""
    shape, unit, count = dice.between(0.3, 5), dice.scale(-3, 3), dice.size(1, 200)
    y = torch.tensor(dice.generator.poisson(3 * unit, count), dtype=torch.float32)
    a, b = shape + float(y.double().sum()), 1 / unit + count

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(shape, 1 / unit))
        with pyro.plate("data", count):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    return RandomProgram("rate", model, exact={"rate": (np.array(a / b), np.array(a**0.5 / b))})


SHAPES: list[Callable[[Dice], RandomProgram]] = [
    *map(one_site, SITES),
    several,
    several,
    funnel,
    hierarchy,
    hierarchy,
    square,
    ridge,
    ring,
    banana,
    two_clusters,
    labels,
    logistic,
    counts,
    few_data,
    at_a_bound,
    walk,
    regression,
    rate,
]
