"""The programs' log-densities against `model.stan` written out, and their minibatches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppl_fe.inference.program.density import Density

from .formulas import FORMULAS
from .programs import POSTERIORS
from .reference import load, needs_posteriordb, unconstrained

pytestmark = needs_posteriordb


@pytest.mark.parametrize("name", POSTERIORS)
def test_log_density_is_stan_s(name: str) -> None:
    """Equal up to a constant, at draws and at points whose parameters come from different draws."""
    program, arguments = POSTERIORS[name]
    reference = load(name)
    data = {key: value.numpy() for key, value in reference.data.items()}
    num_points = 12
    draws = {key: value[0, :num_points].copy() for key, value in reference.draws.items()}
    for shift, values in enumerate(draws.values()):
        values[num_points // 2 :] = np.roll(values[num_points // 2 :], shift, axis=0)
    density = Density(program, arguments(reference.data))
    positions = unconstrained(density, {key: value[None] for key, value in draws.items()})[0]
    ours = np.array([density(position).log_density.item() for position in positions])
    stan_s = np.array(
        [
            FORMULAS[name](data, {key: values[k] for key, values in draws.items()})
            for k in range(num_points)
        ]
    )
    assert np.ptp(stan_s) > 1.0
    np.testing.assert_allclose(ours - ours[0], stan_s - stan_s[0], rtol=1e-8, atol=1e-6)


WITH_DATA_PLATE = [name for name in POSTERIORS if not name.startswith("eight_schools")]


@pytest.mark.parametrize("name", WITH_DATA_PLATE)
def test_minibatches_average_to_the_whole(name: str) -> None:
    """Over all N minibatches of one observation the mean log-density is that of the data."""
    program, arguments = POSTERIORS[name]
    reference = load(name)
    data = arguments(reference.data)
    whole = Density(program, data)
    single = Density(program, data, {"subsample_size": 1})
    assert [plate.subsample_size for plate in single.subsamples] == [1]
    assert single.num_data == whole.num_data > 1
    position = unconstrained(whole, reference.draws)[0, 0]
    indices = torch.arange(whole.num_data)[:, None]
    each = torch.func.vmap(lambda subset: single(position, (subset,)).log_density)(indices)
    torch.testing.assert_close(each.mean(), whole(position).log_density, rtol=1e-10, atol=1e-8)
    assert each.std() > 0
