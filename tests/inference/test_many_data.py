"""Very many data: the mode of all of them, and the curvature of ten thousand rows."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.full_data import full_data_sums
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.schedules import Polynomial
from ppl_fe.inference.step.dense_metric import at_the_mode
from ppl_fe.inference.targets import Targets
from ppl_fe.inference.warmup.many_data import are_many, at_the_mode_of_many


def logistic(x: Tensor, y: Tensor, size: int | None) -> None:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y), subsample_size=size):
        rows, labels = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Bernoulli(logits=rows @ slope), obs=labels)


def rows(num_data: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(num_data, 3, generator=generator, dtype=torch.float64)
    x[:, 1] = 100 + 20 * x[:, 1]  # a raw column
    x[:, 2] = 1.0
    logits = x @ torch.tensor([1.0, 0.05, -5.0], dtype=torch.float64)
    return x, torch.bernoulli(logits.sigmoid(), generator=generator)


DATA = rows(21_000)


def test_the_mode_is_that_of_all_the_data_and_the_metric_near_theirs() -> None:
    density = Density(logistic, (*DATA, 1000))
    assert are_many(density)
    assert not are_many(Density(logistic, (*DATA, None)))
    start = torch.zeros(2, 3, dtype=torch.float64)
    found = at_the_mode_of_many(density, start, seed=0)
    exact = at_the_mode(Density(logistic, (*DATA, None)), start)
    assert found is not None
    assert exact is not None
    assert exact.from_position(found.origin).abs().max() < 0.05  # of ten thousand rows about one
    ratio = torch.linalg.solve(exact.factor[0], found.factor[0])
    sizes = torch.linalg.svdvals(ratio)
    assert 0.85 < float(sizes.min()) < float(sizes.max()) < 1.15


@pytest.mark.parametrize("size", [50, 7])
def test_chunks_side_by_side_add_up_to_the_same(size: int) -> None:
    """More than a hundred chunks, whose last is padded: 6,007 is prime."""
    data = rows(6007)
    positions = torch.tensor([[0.5, 0.01, 0.2], [-0.1, 0.02, 0.0]], dtype=torch.float64)
    whole = full_data_sums(Density(logistic, (*data, None)), positions)
    parts = full_data_sums(Density(logistic, (*data, size)), positions)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)


def middle(y: Tensor, wide: float, size: int | None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros_like(y[0]), wide))
    with pyro.plate("data", len(y), subsample_size=size):
        pyro.sample("y", dist.Normal(w, 1.0), obs=pyro.subsample(y, event_dim=0))


def chosen(wide: float, size: int | None) -> str:
    y = torch.linspace(-1, 1, 1000, dtype=torch.float64)
    kernel = fe.BAOAB(middle, gradient="auto")
    plan = RunPlan(RunLength(), until=Targets(), compile="eager")
    return kernel.prepare(Target(Density(middle, (y, wide, size))), plan).chains.gradient


def test_control_variates_are_taken_where_noise_makes_steps_small() -> None:
    assert chosen(1.0, 100) == "control_variate"


def test_where_the_prior_says_most_minibatches_need_none() -> None:
    """A prior of precision 10⁵ beside a thousand data: their noise is a tenth of a nat."""
    assert chosen(0.003, 100) == "minibatch"
    assert chosen(1.0, None) == "minibatch"


def test_a_step_by_hand_takes_control_variates_where_they_halve_the_noise() -> None:
    """About the mode of a normal law they have none; of nearly all the data there is little."""
    y = torch.linspace(-1, 1, 1000, dtype=torch.float64)
    schedule = Polynomial(1e-4, offset=100.0, power=0.5)

    def gradient_of(size: int) -> str:
        kernel = fe.BAOAB(middle, gradient="auto", step_size=schedule)
        plan = RunPlan(RunLength(10), num_chains=4, compile="eager")
        return kernel.prepare(Target(Density(middle, (y, 1.0, size))), plan).chains.gradient

    assert gradient_of(100) == "control_variate"


def test_a_descent_without_a_mode_gives_no_metric() -> None:
    """The likelihood is flat and the prior improper: there is none to find."""

    def flat(y: Tensor, size: int) -> None:
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        with pyro.plate("data", len(y), subsample_size=size):
            pyro.sample("y", dist.Normal(0 * w.sum(), 1.0), obs=pyro.subsample(y, event_dim=0))

    density = Density(flat, (torch.zeros(21_000), 100))
    assert at_the_mode_of_many(density, torch.zeros(2, 2), seed=0) is None


def test_starts_that_are_given_are_kept_with_a_metric_of_the_mode() -> None:
    y = torch.linspace(-1, 1, 40, dtype=torch.float64)
    start = torch.tensor([[0.5], [-2.0]], dtype=torch.float64)
    plan = RunPlan(RunLength(10), num_chains=2, compile="eager")
    kernel = fe.BAOAB(middle, metric="dense")
    chains, _ = kernel.prepare(Target(Density(middle, (y, 1.0, None)), start=start), plan)
    torch.testing.assert_close(chains.position, start)
    assert chains.metric is not None
    torch.testing.assert_close(chains.metric.factor[0], torch.tensor([[41.0]]).double().rsqrt())


def test_micro_batches_of_all_the_data_are_refused() -> None:
    with pytest.raises(ValueError, match="micro_batches must be 1 with gradient='full_data'"):
        fe.SGLD(middle, micro_batches=2, gradient="full_data")
