"""Adjusted trajectories: exact at every step size, in any metric, and past any excursion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from arviz_stats.base import array_stats
from cases.honest import examine
from exact import z_score
from pyro.infer import MCMC
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.dynamics import malt
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.record.recorder import Recorder
from ppl_fe.inference.run.conclusion import conclude
from ppl_fe.inference.step.builder import Builder
from ppl_fe.inference.step.metric_factor import LowRankFactor, identity_factor
from ppl_fe.inference.step.step_function import Statistics
from ppl_fe.inference.step.trajectories import Path, Trajectories
from ppl_fe.inference.warmup.newton import descend

LENGTH: dict[str, Any] = {"num_samples": 800, "warmup_steps": 50, "progress_bar": False}


def flat(size: int) -> Tensor:
    like = torch.zeros(size, dtype=torch.float64)
    value: Tensor = pyro.sample("x", dist.Normal(like, 1.0).to_event(1).mask(False))
    return value


def quartic() -> None:
    """p ∝ exp(−Σ x⁴)."""
    pyro.factor("energy", -flat(2).pow(4).sum())


def half_line() -> None:
    """The positive half of N(0, 1), as a density that ends rather than a transformed one."""
    x = flat(1).sum()
    pyro.factor("energy", torch.where(x > 0, -0.5 * x * x, -math.inf))


def scores(draws: xr.DataTree, name: str, function: Callable[[Any], Any], exact: float) -> float:
    values = function(draws.posterior[name].values)
    values = values.reshape(*values.shape[:2], -1)[..., 0]
    error = float(array_stats.mcse(values, chain_axis=0, draw_axis=1, method="mean"))
    return float(z_score(values.mean(), exact, error))


@pytest.mark.parametrize(
    "step", [0.8, *(pytest.param(step, marks=pytest.mark.thorough) for step in (0.25, 0.5))]
)
def test_moments_are_exact_at_every_step_size(step: float) -> None:
    """E x² = Γ(3/4)/Γ(1/4) for exp(−x⁴); the longest of these steps rejects half."""
    kernel = fe.MALT(quartic, step_size=step**2, metric="identity", trajectory_length=1.0)
    draws = fe.sample(kernel, num_chains=8, **LENGTH)
    exact = math.gamma(0.75) / math.gamma(0.25)
    assert abs(scores(draws, "x", np.square, exact)) < 4.5
    accepted = float(draws.sample_stats.acceptance_rate.mean())
    assert accepted < 0.6 if step == 0.8 else accepted > 0.6


def test_the_step_that_is_exact_here_would_be_wrong_without_rejections() -> None:
    """The test above can fail: BAOAB at the longest of those steps is far off, or diverges."""
    kernel = fe.BAOAB(quartic, step_size=0.64, friction=1.0)
    try:
        draws = fe.sample(kernel, num_chains=8, **LENGTH)
    except FloatingPointError:
        return
    exact = math.gamma(0.75) / math.gamma(0.25)
    assert not abs(scores(draws, "x", np.square, exact)) < 4.5


def test_trajectories_that_leave_the_support_are_rejected() -> None:
    start = {"x": torch.full((8, 1), 0.5, dtype=torch.float64)}
    kernel = fe.MALT(half_line, step_size=0.25, metric="identity")
    draws = fe.sample(kernel, num_chains=8, initial_params=start, **LENGTH)
    assert float(draws.posterior["x"].min()) > 0
    assert abs(scores(draws, "x", np.asarray, math.sqrt(2 / math.pi))) < 4.5


COVARIANCE = torch.tensor(
    [[1e6, 900.0, 0.0], [900.0, 1.0, 0.0], [0.0, 0.0, 1e-6]], dtype=torch.float64
)


def stretched() -> None:
    mean = torch.tensor([1e3, -1.0, 1e-2], dtype=torch.float64)
    pyro.sample("w", dist.MultivariateNormal(mean, COVARIANCE))


def test_newton_and_the_metric_take_away_a_condition_of_10_to_12() -> None:
    draws = fe.sample(stretched, progress_bar=False)
    assert draws.attrs["sampler"] == "MALT"
    assert fe.diagnose(draws).passed
    for k, (mean, variance) in enumerate(
        zip((1e3, -1.0, 1e-2), COVARIANCE.diagonal(), strict=True)
    ):
        values = draws.posterior["w"].values[..., k]
        error = float(array_stats.mcse(values, chain_axis=0, draw_axis=1, method="mean"))
        assert abs(z_score(values.mean(), mean, error)) < 4.5
        error = float(array_stats.mcse(values, chain_axis=0, draw_axis=1, method="sd"))
        assert abs(z_score(values.std(), float(variance) ** 0.5, error)) < 4.5


def test_of_a_normal_few_draws_with_gradients_make_the_exact_metric() -> None:
    """Draws of the wrong law serve, since gradients tell the curvature: Fisher divergence."""
    torch.manual_seed(0)
    precision = torch.linalg.inv(COVARIANCE)
    factor = identity_factor(torch.zeros(4, 3, dtype=torch.float64))
    for _ in range(12):  # each shrunk towards the one before
        positions = torch.randn(40, 3, dtype=torch.float64) * torch.tensor([300.0, 3.0, 0.01])
        factor, change = factor.refined(positions, -positions @ precision)
    assert change < 1.05
    root = torch.stack([factor.forward(row[None])[0] for row in torch.eye(3).double()], 1)
    whitened = torch.linalg.solve(root, torch.linalg.solve(root, COVARIANCE).mT)
    sizes = torch.linalg.eigvalsh(whitened)
    assert float(sizes.min()) > 0.8
    assert float(sizes.max()) < 1.25  # of a condition of 10^12


def test_a_low_rank_metric_finds_scales_and_the_axis_that_they_miss() -> None:
    torch.manual_seed(0)
    size = 300
    scale = torch.logspace(-2, 2, size, dtype=torch.float64)
    axis = torch.nn.functional.normalize(torch.ones(size, dtype=torch.float64), dim=0)
    factor = identity_factor(torch.zeros(4, size, dtype=torch.float64))
    assert isinstance(factor, LowRankFactor)
    for _ in range(6):
        u = torch.randn(400, size, dtype=torch.float64)
        u = u + 9 * (u @ axis)[:, None] * axis  # sd 10 along one axis
        inverse = u - 0.99 * (u @ axis)[:, None] * axis
        factor, _ = factor.refined(scale * u, -inverse / scale)
    e = torch.randn(5, size, dtype=torch.float64)
    along = factor.forward(e)
    # F is symmetric in the scaled coordinates, so that it is the root of this covariance itself.
    exact = scale * (e + 9 * (e @ axis)[:, None] * axis)
    assert float((along - exact).norm() / exact.norm()) < 0.3
    direction = torch.randn(size, dtype=torch.float64)
    there = factor.forward(direction[None])[0]
    assert torch.allclose(factor.dual(direction) @ there, direction @ direction)
    assert torch.allclose(factor.transpose(e) @ direction, e @ there)


Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centred(y: Tensor, sigma: Tensor) -> None:
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def test_a_funnel_s_descent_stops_at_its_mouth() -> None:
    """The density rises without end as tau falls; the mass does not."""
    density = Density(centred, (Y, SIGMA))
    torch.manual_seed(0)
    found = descend(density, 4 * torch.rand(6, density.num_parameters) - 2)
    assert found is not None
    tau = density.split(found.position)["tau"].exp()
    assert bool((tau > 0.01).all())


def test_no_chain_starts_in_a_mode_that_has_no_mass() -> None:
    """Of modes of a share 1/2 and e^−60 the second is in no draw; of 1/2 and 1/3 both are."""

    def modes(log_share: float) -> Tensor:
        def model() -> None:
            w = pyro.sample("w", dist.Normal(0.0, 100.0).expand([2]).to_event(1))
            high = dist.Normal(0.0, 1.0).log_prob(w).sum()
            low = dist.Normal(20.0, 1.0).log_prob(w).sum() + log_share
            pyro.factor("modes", torch.stack([high, low]).logsumexp(0))

        start = torch.tensor([[1.0, 0.0], [19.0, 21.0], [-1.0, 2.0]])
        found = descend(Density(model), start)
        assert found is not None
        return found.with_lost_at_the_best().position.round().int()

    assert modes(-60.0).tolist() == [[0, 0], [0, 0], [0, 0]]
    assert modes(-0.4).tolist() == [[0, 0], [20, 20], [0, 0]]


@pytest.mark.thorough
def test_a_funnel_ends_in_a_sentence_that_names_the_reparametrisation() -> None:
    with pytest.warns(RuntimeWarning, match="scale of 'theta' is latent.*LocScaleReparam"):
        draws = fe.sample(centred, Y, SIGMA, max_steps=7000, progress_bar=False)
    assert draws.attrs["target_missed"]
    assert not fe.diagnose(draws).passed


def line(x: Tensor, y: Tensor, size: int | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 10.0).to_event(1))
    with pyro.plate("data", len(y), subsample_size=size):
        rows, targets = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(rows @ slope, 0.5), obs=targets)


def test_inside_pyro_s_mcmc() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 2, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0], dtype=torch.float64)
    precision = x.mT @ x / 0.25 + torch.eye(2) / 100
    exact = torch.linalg.solve(precision, x.mT @ y / 0.25)
    pyro.set_rng_seed(0)
    mcmc = MCMC(fe.MALT(line), 600, 0, disable_progbar=True)
    mcmc.run(x, y)
    draws = mcmc.get_samples()["slope"]
    sd = torch.linalg.inv(precision).diagonal().sqrt()
    assert bool(((draws.mean(0) - exact).abs() / sd < 0.25).all())
    assert bool((draws.std(0) / sd - 1).abs().max() < 0.2)


def test_settings_out_of_range_are_refused_by_name() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"step_size": -1.0}, "step_size"),
        ({"metric": "dense"}, "metric must be 'auto' or 'identity', got 'dense'"),
        ({"target_acceptance": 1.0}, "target_acceptance must be below 1"),
        ({"trajectory_length": 0.0}, "trajectory_length"),
        ({"friction": -1.0}, "friction"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            fe.MALT(quartic, **settings)
    with pytest.raises(TypeError, match=r"MALT\(\) has no argument 'step_sizes'; did you mean"):
        fe.MALT(quartic, step_sizes=1.0)


def test_a_loader_s_minibatches_are_refused() -> None:
    data = torch.utils.data.TensorDataset(torch.randn(8, 2), torch.randn(8))
    with pytest.raises(ValueError, match="MALT needs exact gradients"):
        fe.sample(fe.MALT(line), torch.utils.data.DataLoader(data, 4), progress_bar=False)


@pytest.mark.parametrize(("sd", "lost"), [(1.0, False), (0.01, True)])
def test_a_trajectory_whose_energy_is_lost_is_diverging(sd: float, lost: bool) -> None:
    """At steps of twelve standard deviations, an eighth of those given, the error is large."""

    def model() -> None:
        pyro.sample("w", dist.Normal(torch.zeros(2, dtype=torch.float64), sd).to_event(1))

    kernel = fe.MALT(model, step_size=1.0, metric="identity")
    draws = fe.sample(kernel, num_samples=20, warmup_steps=20, progress_bar=False, compile="eager")
    diverging = draws.sample_stats["diverging"].values
    short = np.array([scale == malt.SHORT for scale in 2 * malt.SCALES])
    assert diverging.dtype == bool
    assert (diverging == (short & lost)).all()
    check = fe.diagnose(draws).table.set_index("check").loc["diverging"]
    assert check["passed"] != lost
    assert ("target_acceptance=0.95" in check["advice"]) == lost


def test_what_left_the_support_or_is_merely_rejected_has_not_diverged() -> None:
    error = torch.tensor([0.0, 50.0, 1001.0, math.nan, math.inf])
    still, zero = torch.zeros(5, 2), torch.zeros(5)
    end = malt.State(still, still, still, zero, zero, error)
    assert malt.diverged(end).tolist() == [False, False, True, False, False]
    assert malt.diverged(end, malt.SHORT).tolist() == [False, True, True, False, False]


def test_draws_that_are_put_together_have_diverged_if_one_has() -> None:
    def normal() -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0))

    recorder = Recorder(Density(normal), {"w": slice(0, 1)}, 1, 6, own_statistics=("diverging",))
    one, far = torch.ones(1), torch.zeros(1, 1)
    for diverged in (0.0, 0.0, 1.0, 0.0, 0.0, 2.0):
        statistics = Statistics(torch.zeros(1, 2))
        recorder.add(far, statistics, one, torch.ones(1, 2), one, (torch.tensor([diverged]),))
    recorder.flush()
    recorder.halve()
    kept = recorder.contents()[0]["sample_stats"]["diverging"]
    assert kept.tolist() == [[False, True, True]]


@pytest.mark.slow
@pytest.mark.parametrize("number", [17, 81, 178])  # a scale of centred groups, whose neck matters
@pytest.mark.parametrize("seed", range(3))
def test_a_neck_is_entered_or_told(number: int, seed: int) -> None:
    assert examine(number, seed).kind != "silently wrong"


@pytest.mark.parametrize("scale", malt.SCALES)
def test_every_scale_of_the_step_has_its_length(scale: float) -> None:
    """A short step reaches as far in more steps; a long one reaches further in as many."""
    chains = trajectories_of(scale)
    before = chains.num_gradients
    chains.advance()
    taken = chains.num_gradients - before
    assert taken == round(chains.path.length / (min(scale, 1.0) * chains.steps[0]))
    assert chains.scale == scale
    assert chains.mean_num_steps == taken


def test_only_the_step_itself_is_tuned() -> None:
    """The acceptance that is recorded and tuned is that of scale 1, which others leave as it is."""
    chains = trajectories_of(1.0, malt.LONG)
    chains.advance()
    of_the_step = chains.acceptance.clone()
    chains.advance()
    assert chains.scale == malt.LONG
    assert torch.equal(chains.acceptance, of_the_step)
    acceptance, _ = chains.take_own_statistics(2)
    assert torch.equal(acceptance, of_the_step)


def test_chains_that_are_restored_record_the_acceptance_of_the_step_as_the_others_do() -> None:
    """Where the next trajectory is of another scale, it is the one before that counts."""
    whole, restored = (trajectories_of(1.0, malt.SHORT) for _ in range(2))
    whole.steps = restored.steps = (1.9,)
    whole.advance()
    whole.take_own_statistics(1)
    restored.load_state_dict(whole.state_dict())
    for chains in (whole, restored):
        chains.advance()
    acceptances = [chains.take_own_statistics(1)[0] for chains in (whole, restored)]
    assert torch.equal(*acceptances)
    assert bool((acceptances[0] < 1).any())


def trajectories_of(*scales: float) -> Trajectories:
    def normal() -> None:
        pyro.sample("w", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))

    path = Path(malt.FRICTION, malt.TRAJECTORY_LENGTH, scales)
    start = torch.ones(2, 2, dtype=torch.float64)
    return Trajectories(Density(normal), start, path=path, seed=0, builder=Builder("eager", 1))


def test_the_end_of_a_run_says_that_energy_was_lost_and_names_the_funnel() -> None:
    def funnel() -> None:
        scale = pyro.sample("scale", dist.HalfNormal(torch.ones((), dtype=torch.float64)))
        with pyro.plate("groups", 2):
            pyro.sample("x", dist.Normal(0.0, scale))

    lengths: dict[str, Any] = {"num_samples": 20, "warmup_steps": 20}
    draws = fe.sample(fe.MALT(funnel), progress_bar=False, compile="eager", **lengths)
    draws.sample_stats["diverging"].values[:] = True
    draws.attrs |= {"target_missed": "", "interrupted": 0}
    with pytest.warns(
        RuntimeWarning, match=r"doubtful: \d+ % of the .* The scale of 'x' is latent"
    ):
        conclude(draws, Density(funnel), show=False)
    draws.attrs["target_missed"] = "max_steps=9 were taken"  # which says more
    draws.attrs |= dict.fromkeys(("worst_r_hat", "worst_ess"), 2.0)
    draws.attrs |= dict.fromkeys(("worst_r_hat_of", "worst_ess_of"), "x[0]")
    with pytest.warns(
        RuntimeWarning, match=r"^not an answer yet: .*scale of 'x' is latent"
    ) as said:
        conclude(draws, Density(funnel), show=False)
    assert len(said) == 1
