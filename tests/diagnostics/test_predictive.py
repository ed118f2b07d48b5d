"""Predictions against their own laws: closed forms of conjugate programs, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import ppl_fe as fe

Y = torch.linspace(-1.0, 2.0, 11)
MEAN, SD = 0.5, 0.3  # of the posterior, which the draws below have exactly
CHAINS, DRAWS = 4, 1000
ERRORS = 5.0  # standard errors that the worst of a few dozen means may stray


def normal(y: Tensor | None, size: int | None = None, num_data: int = 11) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    pyro.deterministic("twice", 2 * mean)
    with pyro.plate("data", num_data, subsample_size=size) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=None if y is None else y[rows])


def draws_of(**sites: Tensor) -> xr.DataTree:
    """Draws made by hand: site -> values (C, S, ...)."""
    data = {
        name: (("chain", "draw", *(f"{name}_dim_{k}" for k in range(value.dim() - 2))), value)
        for name, value in sites.items()
    }
    shape = next(iter(sites.values())).shape
    coords = {"chain": range(shape[0]), "draw": range(shape[1])}
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset(data, coords=coords)})
    tree.attrs["sites"] = json.dumps({name: list(v.shape[2:]) for name, v in sites.items()})
    return tree


def exact_draws() -> xr.DataTree:
    generator = torch.Generator().manual_seed(5)
    return draws_of(mean=MEAN + SD * torch.randn(CHAINS, DRAWS, generator=generator))


def check_moments(values: np.ndarray, mean: float, variance: float) -> None:
    """Independent draws of a normal law, (C, S, N): mean and variance of each column."""
    flat = values.reshape(-1, values.shape[-1]).astype(float)
    error = (variance / len(flat)) ** 0.5
    np.testing.assert_allclose(flat.mean(0), mean, atol=ERRORS * error)
    np.testing.assert_allclose(flat.var(0), variance, rtol=ERRORS * (2 / len(flat)) ** 0.5)


def test_counts_are_whole_numbers_as_pictures_of_counts_need_them() -> None:
    def model(cases: Tensor | None) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("town", 3):
            pyro.sample("cases", dist.Poisson(rate), obs=cases)

    draws, cases = draws_of(rate=torch.full((2, 5), 1.5)), torch.tensor([0.0, 2.0, 1.0])
    found = fe.add_posterior_predictive(draws, model, cases)
    prior = fe.prior_predictive(model, cases, num_samples=5)
    for group in (found.posterior_predictive, found.observed_data, prior.prior_predictive):
        assert group["cases"].dtype == np.int64
    assert found.observed_data["cases"].values.tolist() == [0, 2, 1]
    assert prior.prior["rate"].dtype == np.float32


@pytest.mark.parametrize("size", [None, 4])
def test_predictions_have_the_posterior_predictive_law_on_all_the_data(size: int | None) -> None:
    draws = exact_draws()
    found = fe.add_posterior_predictive(draws, normal, Y, size)
    predicted = found.posterior_predictive["y"]
    assert predicted.dims == ("chain", "draw", "data")
    check_moments(predicted.values, MEAN, 1 + SD**2)
    # What the data share is the mean of their draw.
    shared = np.cov(predicted.values.reshape(-1, 11).T)[np.triu_indices(11, 1)]
    np.testing.assert_allclose(shared, SD**2, atol=ERRORS * (1 + SD**2) / (CHAINS * DRAWS) ** 0.5)
    assert list(found.posterior_predictive.data_vars) == ["y"]
    np.testing.assert_array_equal(found.observed_data["y"], Y)
    assert "posterior_predictive" not in draws.children


def test_equal_seeds_give_equal_predictions_and_leave_the_generator_alone() -> None:
    draws, before = exact_draws(), torch.get_rng_state()
    first, again, other = (
        fe.add_posterior_predictive(draws, normal, Y, seed=seed).posterior_predictive["y"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    xr.testing.assert_identical(first, again)
    assert not first.equals(other)


def test_draws_are_gone_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_fe.inference.program.minibatches.VALUES_AT_ONCE", 11 * 300)
    found = fe.add_posterior_predictive(exact_draws(), normal, Y)
    check_moments(found.posterior_predictive["y"].values, MEAN, 1 + SD**2)


def test_new_inputs_are_predicted() -> None:
    found = fe.add_posterior_predictive(exact_draws(), normal, None, num_data=3)
    assert "posterior_predictive" not in found.children
    check_moments(found.predictions["y"].values, MEAN, 1 + SD**2)
    np.testing.assert_array_equal(found.predictions["twice"], 2 * found.posterior["mean"])


COUNTS: dict[str, Any] = {
    "poisson": lambda rate: dist.Poisson(rate * torch.tensor([1.0, 10.0])),
    "bernoulli": lambda rate: dist.Bernoulli(logits=rate.expand(2)),
    "binomial": lambda rate: dist.Binomial(7, logits=rate.expand(2)),
    "negative binomial": lambda rate: dist.NegativeBinomial(rate.expand(2), logits=-0.5),
    "categorical": lambda rate: dist.Categorical(logits=torch.stack([rate, -rate, 0 * rate])),
    "student": lambda rate: dist.StudentT(9.0, rate.expand(2), 2.0),
    "multinomial": lambda rate: dist.Multinomial(5, logits=torch.stack([rate, -rate, 0 * rate])),
    "ordered": lambda rate: dist.OrderedLogistic(rate.expand(2), torch.tensor([-1.0, 0.5])),
    "beta": lambda rate: dist.Beta(rate.expand(2), 2.0),
    "Dirichlet": lambda rate: dist.Dirichlet(torch.stack([rate, 2 * rate, rate])),
    "exponential": lambda rate: dist.Exponential(rate.expand(2)),
    "mixture": lambda rate: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.stack([rate, -3 * rate]), 1.0)
    ),
    "von Mises": lambda rate: dist.VonMises(0.0, rate.expand(2)),
}


@pytest.mark.parametrize("law", COUNTS)
def test_every_family_is_drawn_at_its_own_parameters(law: str) -> None:
    """Also those that torch.func cannot draw: then draw after draw."""

    def program() -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        made = COUNTS[law](rate)
        pyro.sample("y", made.to_event(1) if made.batch_shape else made, obs=made.sample())

    count = 250  # each, of two rates
    rate = torch.tensor([0.4, 1.6]).repeat_interleave(count).expand(CHAINS, 2 * count)
    found = fe.add_posterior_predictive(draws_of(rate=rate), program)
    predicted = found.posterior_predictive["y"].values.astype(float)
    for half, own in ((slice(0, count), 0.4), (slice(count, None), 1.6)):
        made = COUNTS[law](torch.tensor(own))
        wanted = made.sample((20_000,)).double()
        mine = predicted[:, half].reshape(CHAINS * count, *wanted.shape[1:])
        error = wanted.var(0).numpy() * (1 / len(mine) + 1 / len(wanted))
        assert (np.abs(mine.mean(0) - wanted.mean(0).numpy()) < ERRORS * error**0.5).all()


@pytest.mark.parametrize("size", [None, 4])
def test_the_prior_predictive_law(size: int | None) -> None:
    tree = fe.prior_predictive(normal, Y, size, num_samples=4000, seed=3)
    check_moments(tree.prior_predictive["y"].values, 0.0, 5.0)
    np.testing.assert_allclose(tree.prior["mean"].values.var(), 4.0, rtol=0.12)
    np.testing.assert_array_equal(tree.prior["twice"], 2 * tree.prior["mean"])
    rest = (
        tree.prior_predictive["y"] - tree.prior["mean"]
    )  # the draw's own mean, in all minibatches
    check_moments(rest.transpose("chain", "draw", "data").values, 0.0, 1.0)
    np.testing.assert_array_equal(tree.observed_data["y"], Y)
    again = fe.prior_predictive(normal, Y, size, num_samples=4000, seed=3)
    xr.testing.assert_identical(tree, again)


@pytest.mark.parametrize("batched", [True, False])
def test_correlations_are_drawn_from_the_law_that_is_named(
    batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LKJ(η) of D variables: the square of each correlation has the mean 1/(2η + D − 1)."""
    if not batched:
        monkeypatch.setattr(torch.func, "vmap", _unbatchable)
    size, eta, number = 4, 1.5, 4000 if batched else 400

    def model() -> None:
        pyro.sample("factor", dist.LKJCholesky(size, torch.tensor(eta)))

    factor = fe.prior_predictive(model, num_samples=number).prior["factor"].values[0]
    below = np.tril_indices(size, -1)
    squares = (factor @ factor.swapaxes(-1, -2))[(slice(None), *below)] ** 2
    exact = 1 / (2 * eta + size - 1)  # a correlation's (1 + r)/2 ~ Beta(b, b), b = η − 1 + D/2
    fourth = 3 / ((2 * eta + size - 1) * (2 * eta + size + 1))
    error = (fourth - exact**2) ** 0.5 / number**0.5
    np.testing.assert_allclose(squares.mean(0), exact, atol=ERRORS * error)
    np.testing.assert_allclose((factor**2).sum(-1), 1.0, rtol=1e-5)
    assert (np.triu(factor, 1) == 0).all()


def _unbatchable(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no batching rule")


def test_what_cannot_be_predicted_is_refused() -> None:
    draws = exact_draws()

    def other(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("location", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    def only_prior(y: Tensor) -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    def flat(y: Tensor) -> None:
        reals = dist.constraints.real
        mean = pyro.sample("mean", dist.ImproperUniform(reals, (), ()))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def local(y: Tensor) -> None:
        with pyro.plate("data", 11, subsample_size=3) as rows:
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])

    for program, message in ((other, "of another program"), (only_prior, "nothing to predict")):
        with pytest.raises(ValueError, match=message):
            fe.add_posterior_predictive(draws, program, Y)
    for program, message in ((flat, "site 'mean' cannot be drawn"), (local, "plate 'data'")):
        with pytest.raises(ValueError, match=message):
            fe.prior_predictive(program, Y)
    with pytest.raises(ValueError, match=r"'mean' has shape \(\), in the model it is \(2,\)"):
        fe.add_posterior_predictive(
            draws, lambda: pyro.sample("mean", dist.Normal(0, 1).expand([2]))
        )
    with pytest.raises(TypeError, match="data must be the arguments"):
        fe.add_posterior_predictive(draws, normal)
    with pytest.raises(TypeError, match=r"predictive\(\) has no argument 'sed'; did you mean seed"):
        fe.add_posterior_predictive(draws, normal, Y, sed=1)


def schools(effect: Tensor, sd: Tensor, size: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mean, 1.0))
        pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        pyro.deterministic("shifted", theta + 1)
        with pyro.plate("pupil", 5, subsample_size=size) as rows:
            pyro.sample("effect", dist.Normal(theta, sd), obs=effect[rows])


EFFECT, SCALE = torch.arange(40.0).reshape(5, 8), torch.full((8,), 2.0)
QUICK: dict[str, Any] = {
    "num_samples": 6,
    "warmup_steps": 2,
    "num_chains": 2,
    "compile": "eager",
    "progress_bar": False,
}


@pytest.mark.parametrize("size", [None, 2])
def test_dimensions_bear_the_names_of_plates_and_the_data_lie_beside_the_draws(
    size: int | None,
) -> None:
    kernel = fe.BAOAB(schools, step_size=0.01)
    draws = fe.sample(kernel, EFFECT, SCALE, size, **QUICK)
    over = ("chain", "draw")
    found = {name: held.dims for name, held in draws.posterior.data_vars.items()}
    assert found == {
        "mean": over,
        "theta": (*over, "school"),
        "share": (*over, "school", "share_dim_1"),
        "shifted": (*over, "school"),
    }
    assert draws.moments["theta"].dims == ("moment", "school")
    assert draws.moments["share"].dims == ("moment", "school", "share_dim_1")
    assert draws.observed_data["effect"].dims == ("pupil", "school")
    np.testing.assert_array_equal(draws.observed_data["effect"], EFFECT)
    assert list(draws.constant_data.data_vars) == ["sd"]
    np.testing.assert_array_equal(draws.constant_data["sd"], SCALE)
    terms = fe.add_log_likelihood(draws, schools, EFFECT, SCALE, size).log_likelihood
    assert terms["effect"].dims == (*over, "pupil", "school")


def test_names_and_labels_that_are_given(tmp_path: Any) -> None:
    names = [f"school {k}" for k in "ABCDEFGH"]
    labelled: dict[str, Any] = {
        "dims": {"share": ["school", "grade"], "sd": ["school"]},
        "coords": {"school": names, "grade": ["a", "b", "c"]},
    }
    kernel = fe.BAOAB(schools, step_size=0.01)
    path = tmp_path / "run.zarr"
    draws = fe.sample(kernel, EFFECT, SCALE, **QUICK, **labelled, save_to=path)
    assert draws.posterior["share"].dims == ("chain", "draw", "school", "grade")
    assert draws.constant_data["sd"].sel(school="school B") == 2.0
    one = draws.posterior["share"].sel(school="school C", grade="b")
    np.testing.assert_array_equal(one, draws.posterior["share"][:, :, 2, 1])
    added = fe.add_posterior_predictive(draws, schools, EFFECT, SCALE)
    assert list(added.posterior_predictive["effect"]["school"].values) == names
    table = fe.summary(draws, ["theta"], coords={"school": ["school B"]}, kind="stats")
    assert list(table.index) == ["theta[school B]"]
    again = fe.sample(kernel, EFFECT, SCALE, **QUICK, **labelled, save_to=path, resume=True)
    xr.testing.assert_identical(again.posterior.to_dataset(), draws.posterior.to_dataset())
    assert list(again.observed_data["effect"]["school"].values) == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dims": {"thetta": ["x"]}}, "dims names 'thetta', which is no site; did you mean"),
        ({"dims": {"theta": ["x", "y"]}}, r"dims\['theta'\] must name its 1 axes"),
        ({"dims": {"theta": ["chain"]}}, r"dims\['theta'\] must name its 1 axes"),
        ({"dims": {"share": ["grade", "school"]}}, "an axis of 3 entries 'school'"),
        ({"coords": {"schol": [1]}}, "coords names 'schol', .* did you mean 'school'"),
        ({"coords": {"school": ["A"]}}, r"coords\['school'\] has 1 labels, .* has 8 entries"),
    ],
)
def test_names_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fe.sample(schools, EFFECT, SCALE, **QUICK, **given)


def test_a_plate_whose_name_is_taken_names_no_dimension() -> None:
    def program() -> None:
        with pyro.plate("draw", 2):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    draws = fe.sample(fe.BAOAB(program, step_size=0.01), **QUICK)
    assert draws.posterior["x"].dims == ("chain", "draw", "x_dim_0")


def test_draws_without_a_posterior_predict_nothing() -> None:
    with pytest.raises(ValueError, match="draws hold no group 'posterior'"):
        fe.add_posterior_predictive(xr.DataTree(), normal, Y)
