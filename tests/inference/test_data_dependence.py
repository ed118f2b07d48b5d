"""What a program may do with its data beside tensor arithmetic: read numbers, index by arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.step import compile as compiling

GROUP = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
Y = torch.tensor([0.5, -1.0, 2.0, 0.1, -0.4, 1.3, 0.9, -1.2])
Program = Callable[[Any, Tensor], None]


def levels(num_groups: Any, group: Any, y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(torch.zeros(num_groups), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(level[group], 1.0), obs=y)


def by_int(group: Tensor, y: Tensor) -> None:
    levels(int(group.max()) + 1, group, y)


def by_item(group: Tensor, y: Tensor) -> None:
    levels(group.max().item() + 1, group, y)


def by_branch(group: Tensor, y: Tensor) -> None:
    levels(3 if y.mean() < 100 else 7, group, y)


def plain(group: Tensor, y: Tensor) -> None:
    levels(3, group, y)


def in_minibatches(group: Any, y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(y), subsample_size=4) as rows:
        pyro.sample("y", dist.Normal(level[group[rows]], 1.0), obs=y[rows])


def draws(program: Any, *data: Any, **changed: Any) -> xr.DataTree:
    options: dict[str, Any] = {"num_samples": 20, "warmup_steps": 5, "num_chains": 2, "seed": 1}
    kernel = fe.SGLD(program, step_size=0.05)
    return fe.sample(kernel, *data, progress_bar=False, **{**options, **changed})


@cache
def plainly(mode: Any) -> xr.DataTree:
    return draws(plain, GROUP, Y, compile=mode)


@pytest.mark.parametrize("program", [by_int, by_item, by_branch])
@pytest.mark.parametrize("mode", ["traced", "eager"])
def test_numbers_read_from_the_data_are_theirs(program: Program, mode: Any) -> None:
    found, expected = draws(program, GROUP, Y, compile=mode), plainly(mode)
    assert (found.attrs["compile"], found.attrs["chain_method"]) == (mode, "vectorized")
    xr.testing.assert_identical(
        found.posterior.to_dataset().drop_attrs(), expected.posterior.to_dataset().drop_attrs()
    )


def test_what_changes_from_step_to_step_is_never_read_for_good() -> None:
    def branch(x: Tensor) -> list[Tensor]:
        return [x if x.sum() > 0 else -x]

    with pytest.raises(
        ValueError, match=r"takes values out of tensors .*so that its step makes no"
    ):
        compiling.trace(branch, (torch.ones(2),))

    def batched(x: Tensor) -> list[Tensor]:
        return [torch.func.vmap(lambda row: branch(row)[0])(x)]

    with pytest.raises(RuntimeError, match=r"vmap: .*data-dependent control flow"):
        compiling.trace(batched, (torch.ones(3, 2),), read_constants=True)


def test_a_minibatch_that_the_program_branches_on_is_told_and_run_right() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=2) as rows:
            batch = y[rows]
            pyro.sample("y", dist.Normal(mean, 1.0), obs=batch if batch[0] > 0 else 1.0 * batch)

    with pytest.warns(RuntimeWarning, match="cannot be vectorised .*one after another, uncompiled"):
        assert draws(model, Y).attrs["compile"] == "eager"


@pytest.mark.parametrize(
    "convert", [lambda batch: batch.numpy(), lambda batch: batch.tolist()], ids=["numpy", "tolist"]
)
def test_a_minibatch_taken_out_of_torch_is_one_clear_error(convert: Any) -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor(convert(y[rows])))

    with pytest.raises(ValueError, match=r"takes values out of tensors \(\.numpy\(\), \.tolist"):
        draws(model, Y)


def test_arrays_of_group_numbers_index_what_is_whole() -> None:
    for group in (GROUP.numpy(), GROUP.numpy().astype(np.int8), pd.Series(GROUP.numpy())):
        found = draws(plain, group, Y, compile="eager").posterior["level"]
        assert found.equals(plainly("eager").posterior["level"])


INT64 = r"the model needs torch\.int64; give tensor\.long\(\)"


@pytest.mark.parametrize(
    ("program", "group", "message"),
    [
        (plain, GROUP.to(torch.int8), rf"is a tensor of torch\.int8, {INT64}"),
        (plain, GROUP.to(torch.uint8), rf"is a tensor of torch\.uint8, {INT64}"),
        (plain, GROUP.float(), rf"is a tensor of torch\.float32, {INT64}"),
    ],
)
def test_group_numbers_of_another_kind_are_named(
    program: Program, group: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"argument 0 {message}"):
        Density(program, (group, Y))


def test_an_array_from_outside_of_the_program_is_told_of_too() -> None:
    def model(y: Tensor) -> None:
        in_minibatches(GROUP.numpy(), y)

    with pytest.raises(ValueError, match=r"index a NumPy array or a data frame.*torch\.as_tensor"):
        Density(model, (Y,))


@pytest.mark.parametrize("group", [GROUP.numpy(), pd.Series(GROUP.numpy())])
def test_arrays_that_minibatches_index_become_tensors(group: Any) -> None:
    assert Density(in_minibatches, (group, Y)).tensors[0].dtype == torch.int64
