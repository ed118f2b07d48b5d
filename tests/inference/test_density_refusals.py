"""Programs and data that have no usable density are refused, and the message says which."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_fe.inference.density import Density


def plated(y: Tensor, size: int, subset: int | None, explicit: bool) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", size, subsample_size=subset) as ix:
        batch = y[ix] if explicit else pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=batch)


@pytest.mark.parametrize("discrete", [dist.Bernoulli(0.5), dist.Poisson(3.0)])
def test_a_discrete_latent_site_is_named(discrete: dist.Distribution) -> None:
    def model() -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("switch", discrete)

    with pytest.raises(ValueError, match="latent site 'switch' is discrete"):
        Density(model)


def test_a_discrete_observed_site_is_fine() -> None:
    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("y", dist.Bernoulli(p).expand([2]).to_event(1), obs=y)

    assert Density(model, (torch.ones(2),)).num_parameters == 1


def test_nothing_to_sample() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ValueError, match="no latent site"):
        Density(model, (torch.tensor(1.0),))


def test_a_latent_site_inside_a_subsampled_plate() -> None:
    def model(y: Tensor, size: int) -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=size):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(offset, 1.0), obs=pyro.subsample(y, event_dim=0))

    with pytest.raises(ValueError, match="'offset' lies inside the subsampled plate 'rows'"):
        Density(model, (torch.zeros(6), 2))
    assert Density(model, (torch.zeros(6), 6)).num_parameters == 7


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("subset", [3, None])
def test_a_plate_that_disagrees_with_the_data(size: int, subset: int | None) -> None:
    with pytest.raises(ValueError, match=r"failed on a trial run.*"):
        Density(plated, (torch.zeros(7), size, subset, False))


@pytest.mark.parametrize("subset", [3, None])
def test_explicit_indices_beyond_the_end_of_the_data(subset: int | None) -> None:
    with pytest.raises(ValueError, match=r"failed on a trial run.*out of (bounds|range)"):
        Density(plated, (torch.zeros(7), 8, subset, True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_data_that_are_not_finite(bad: float) -> None:
    def model(x: Tensor, data: dict[str, Tensor]) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=data["y"])

    y = torch.zeros(4)
    y[1:3] = bad
    with pytest.raises(ValueError, match=r"tensor 1 .*\(shape \(4,\)\) holds 2 NaN or infinite"):
        Density(model, (torch.ones(4), {"y": y}))


def test_a_model_that_fails_keeps_its_own_message() -> None:
    def model(x: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=r"trial run with the data given: .*size") as raised:
        Density(model, (torch.ones(2),))
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_data_outside_a_likelihoods_support() -> None:
    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    with pytest.raises(ValueError, match="failed on a trial run"):
        Density(model, (torch.tensor([0.0, 2.0]),))


X = torch.linspace(-1.0, 1.0, 12).reshape(6, 2)
Y = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
FRAME, COLUMN = pd.DataFrame(X.numpy(), columns=["a", "b"]), pd.Series(Y.numpy())
GROUPS = torch.tensor([0, 1, 0, 1, 1, 0])


def regression(x: Any, y: Any) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


def proportional(x: Any, y: Any) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def logistic(x: Any, y: Any) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slope), obs=y)


def grouped(group: Any, y: Any) -> None:
    level = pyro.sample("level", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=level[group]), obs=y)


def in_double_precision(x: Any, y: Any) -> None:
    prior = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    slope = pyro.sample("slope", prior)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


FLOATS = "dtype=torch.float32)"
A_FRAME = f"argument 0 is a pandas DataFrame; give a tensor: torch.tensor(frame.values, {FLOATS}"
A_COLUMN = f"argument 1 is a pandas Series; give a tensor: torch.tensor(series.values, {FLOATS}"
ARRAY_0, ARRAY_1 = (
    f"argument {k} is a NumPy array; give a tensor: torch.tensor(array, {FLOATS}" for k in (0, 1)
)
DOUBLES = (
    "argument 0 is a tensor of torch.float64, the model's sites are of torch.float32; give "
    "tensor.to(torch.float32), or write the model in torch.float64"
)
LABELS = "argument 1 is a tensor of torch.int64, the model wants floats; give tensor.to(torch.float"


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of NumPy's own product
@pytest.mark.parametrize(
    ("model", "args", "advice"),
    [
        (regression, (FRAME, COLUMN), f"{A_FRAME}; {A_COLUMN} ("),
        (regression, (FRAME, Y), f"{A_FRAME} ("),
        (regression, (X, COLUMN), f"{A_COLUMN} ("),
        (regression, (X.double().numpy(), Y.numpy()), f"{ARRAY_0}; {ARRAY_1} ("),
        (regression, (X.numpy(), Y), f"{ARRAY_0} ("),
        # NumPy multiplies the number that the site is, but no gradient goes through.
        (proportional, (X[:, 0].numpy(), Y), f"{ARRAY_0} ("),
        (regression, (X.double(), Y.double()), f"{DOUBLES} ("),
        (in_double_precision, (X, Y), "give tensor.to(torch.float64), or write the model in"),
        (logistic, (X, Y.long()), f"{LABELS}32) ("),
        (logistic, (X, Y.bool()), "argument 1 is a tensor of torch.bool, the model wants floats"),
        (logistic, (X.double(), Y.long()), f"{DOUBLES}; {LABELS}32) ("),
        (logistic, (X, Y.long().numpy()), f"{ARRAY_1} ("),
        # Integers that choose a group stay what they are.
        (grouped, (GROUPS, Y.long()), f": {LABELS}32) ("),
        (grouped, (GROUPS.numpy(), Y.long()), f": {LABELS}32) ("),
        (regression, (FRAME.assign(b=True), Y), "torch.tensor(frame.astype(float).values, "),
        (regression, (FRAME.assign(c="x"), Y), "tensor of the columns of numbers: torch.tensor(fr"),
        # Missing values are met once it is a tensor.
        (regression, (X, COLUMN.where(COLUMN > 0)), f"{A_COLUMN} ("),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(
    model: Callable[..., None], args: tuple[Any, ...], advice: str
) -> None:
    with pytest.raises(ValueError, match="the model failed on a trial run") as raised:
        Density(model, args)
    assert advice in str(raised.value)
    assert "Trace Shapes" not in str(raised.value)
    assert raised.value.__cause__ is not None


def test_arguments_by_keyword_and_in_mappings_have_names() -> None:
    def model(data: dict[str, Any], *, response: Any) -> None:
        regression(data["x"], response)

    with pytest.raises(ValueError, match=r"argument 0\['x'\] is a .* argument 'response' is a N"):
        Density(model, ({"x": X.numpy()},), {"response": Y.numpy()})


def test_what_a_program_can_use_is_left_to_it() -> None:
    def own(frame: pd.DataFrame, y: Tensor) -> None:
        regression(torch.tensor(frame.to_numpy(), dtype=torch.float32), y)

    assert Density(own, (FRAME, Y)).num_parameters == 2
    assert Density(grouped, (GROUPS.numpy(), Y)).num_parameters == 2
    assert Density(proportional, (GROUPS, Y.long())).dtype == torch.float32
    assert Density(in_double_precision, (X.double(), Y.double())).dtype == torch.float64
    assert Density(regression, (X, Y.double())).dtype == torch.float32  # the terms are float64


def test_failures_that_are_none_of_the_arguments_keep_their_own_message() -> None:
    def mistaken(x: Any, y: Any) -> None:
        regression(X, y)
        raise TypeError("of the program's own")

    with pytest.raises(TypeError, match=r"^of the program's own$"):
        Density(mistaken, (X.numpy(), Y))
    with pytest.raises(ValueError, match=r"data given: [^(]*size") as raised:
        Density(regression, (X[:, :1], Y.long()))
    assert "wants floats" not in str(raised.value)


def test_a_column_of_observations_is_refused_where_it_broadcasts() -> None:
    def regression(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=4) as rows:
            pyro.sample("y", dist.Normal(slope * x[rows], 1.0), obs=y[rows])

    x, y = torch.linspace(-1, 1, 10), torch.linspace(0, 1, 10)
    assert Density(regression, (x, y)).num_data == 10
    with pytest.raises(ValueError, match=r"'y' has log-densities of shape \(4, 4\), .* \(4,\)"):
        Density(regression, (x, y[:, None]))


def test_other_shapes_in_plates_are_taken() -> None:
    def nested(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3, dim=-1), pyro.plate("rows", len(y), dim=-2):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        with pyro.plate("vectors", len(y)):
            pyro.sample("z", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)
        pyro.sample("alone", dist.Normal(mean, 1.0), obs=y)  # without plates: Pyro takes it

    assert Density(nested, (torch.zeros(5, 3),)).num_data == 5
