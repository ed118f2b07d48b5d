"""One process a chain: the same schema, independent chains, failures named, files written."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from exact import mcse_of_mean, z_score
from torch import Tensor

import ppl_fe as fe

Y = torch.tensor([0.5, 1.5, 1.0, 2.0])
# N(0, 1) prior, unit noise: posterior N(Σy/(n+1), 1/(n+1)).
MEAN, VARIANCE = Y.sum().item() / 5, 1 / 5


def model(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("scale", dist.LogNormal(torch.zeros(2), 0.2).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)


def draws(kernel: fe.Kernel | None = None, **changed: Any) -> xr.DataTree:
    options: dict[str, Any] = {
        "num_samples": 8,
        "warmup_steps": 3,
        "num_chains": 3,
        "chain_method": "parallel",
        "compile": "eager",
        "progress_bar": False,
    }
    kernel = kernel or fe.BAOAB(model, step_size=0.1, friction=2.0)
    return fe.sample(kernel, Y, **{**options, **changed})


def test_the_schema_is_that_of_vectorised_chains() -> None:
    parallel, vectorized = draws(), draws(chain_method="vectorized")
    assert set(parallel.children) == set(vectorized.children)
    for group in parallel.children:
        one, other = parallel[group].to_dataset(), vectorized[group].to_dataset()
        assert {k: (v.dims, v.shape, v.dtype) for k, v in one.variables.items()} == {
            k: (v.dims, v.shape, v.dtype) for k, v in other.variables.items()
        }
        for coordinate in one.coords:
            np.testing.assert_array_equal(one[coordinate], other[coordinate])
    assert parallel.attrs["chain_method"] == "parallel"
    differ = {"chain_method", "sampling_time", "tuned_measured_temperature"}
    assert parallel.attrs.keys() == vectorized.attrs.keys()
    assert {k: v for k, v in parallel.attrs.items() if k not in differ} == {
        k: v for k, v in vectorized.attrs.items() if k not in differ
    }


def test_equal_seeds_give_equal_draws_and_every_chain_its_own() -> None:
    one = draws(seed=5)
    assert_equal_draws(one, draws(seed=5))
    every = np.concatenate([one.posterior["w"].values, draws(seed=6).posterior["w"].values])
    assert len(np.unique(every)) == every.size


def test_every_chain_has_a_process_of_its_own(tmp_path: Path) -> None:
    def telling(y: Tensor) -> None:
        (tmp_path / str(os.getpid())).touch()
        model(y)

    draws(fe.SGLD(telling, step_size=0.1), compile="eager", num_samples=2, warmup_steps=0)
    children = {path.name for path in tmp_path.iterdir()} - {str(os.getpid())}
    assert len(children) == min(3, os.cpu_count() or 1)


@pytest.mark.thorough
def test_the_law_is_right_and_the_chains_are_independent() -> None:
    tree = draws(num_samples=1000, num_chains=3, compile="traced")
    w = tree.posterior["w"].values.astype(np.float64)
    assert abs(z_score(float(w.mean()), MEAN, mcse_of_mean(w))) < 4
    squares = (w - MEAN) ** 2
    assert abs(z_score(float(squares.mean()), VARIANCE, mcse_of_mean(squares))) < 4
    # Products of two chains have mean zero: shared noise would give them that of a square.
    for first in range(3):
        for second in range(first):
            product = ((w[first] - MEAN) * (w[second] - MEAN))[None]
            assert abs(z_score(float(product.mean()), 0.0, mcse_of_mean(product))) < 4


def test_moments_are_those_of_the_draws() -> None:
    tree = draws(num_samples=13)
    moments = tree["moments"].to_dataset()
    for name, values in (
        ("w", tree.posterior["w"].values),
        ("scale", np.log(tree.posterior["scale"].values)),
    ):
        values = values.astype(np.float64)
        found = moments[name]
        np.testing.assert_allclose(found.sel(moment="mean"), values.mean((0, 1)), atol=1e-5)
        np.testing.assert_allclose(found.sel(moment="sd"), values.std((0, 1), ddof=1), rtol=1e-4)


def test_starts_are_each_chain_s_own() -> None:
    start = {"w": torch.tensor([1.0, 2.0, 3.0]), "scale": torch.zeros(3, 2)}
    tree = draws(num_samples=1, warmup_steps=0, initial_params=start)
    np.testing.assert_array_equal(tree.posterior["w"][:, 0], start["w"])


def test_what_is_saved_is_what_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    tree = draws(save_to=path)
    stored = xr.open_datatree(path, engine="zarr").load()
    for group in tree.children:
        xr.testing.assert_identical(
            stored[group].to_dataset().drop_attrs(), tree[group].to_dataset().drop_attrs()
        )
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileExistsError, match="already holds another run"):
        draws(save_to=path)


def test_a_failed_chain_is_left_out_and_named() -> None:
    start = {"w": torch.tensor([0.0, torch.inf, 1.0]), "scale": torch.zeros(3, 2)}
    with pytest.warns(
        RuntimeWarning,
        match="^left out: chain 1, the gradient of w was not finite at warm-up step 0$",
    ):
        tree = draws(initial_params=start)
    assert tree.posterior.chain.values.tolist() == [0, 2]
    assert list(json.loads(tree.attrs["failed_chains"])) == ["1"]
    for group in tree.children:
        assert all(np.isfinite(v).all() for v in tree[group].to_dataset().values())
    # The others are what they would have been.
    start["w"][1] = 0.5
    whole = draws(initial_params=start)
    np.testing.assert_array_equal(tree.posterior["w"], whole.posterior["w"].sel(chain=[0, 2]))


def test_all_chains_failed_is_the_error_of_vectorised_chains() -> None:
    kernel = fe.SGLD(model, step_size=100.0)
    messages = []
    for method in ("parallel", "vectorized"):
        with pytest.raises(FloatingPointError, match="every chain became non-finite") as caught:
            draws(kernel, chain_method=method, warmup_steps=50)
        messages.append(str(caught.value))
    assert all("allows steps up to" in message for message in messages)


def test_a_program_that_branches_needs_no_warning() -> None:
    def branching(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        if w > 0:
            pyro.factor("more", -w)

    tree = draws(fe.SGLD(branching, step_size=0.1))  # a warning would be an error
    assert tree.attrs["chain_method"] == "parallel"
    assert tree.attrs["compile"] == "eager"


@pytest.mark.slow
def test_estimates_agree_with_vectorised_ones() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(100, 2)
    network = fe.FlatNetwork(torch.nn.Linear(2, 1, bias=False).requires_grad_(True))
    found = [
        fe.estimate_free_energy(
            network,
            (inputs, network(network.anchor, inputs)),
            likelihood="normal",
            localization=1.0,
            num_chains=3,
            num_samples=300,
            warmup_steps=200,
            thinning=2,
            chain_method=method,
            progress_bar=False,
        )
        for method in ("parallel", "vectorized")
    ]
    one, other = found
    assert one.draws.attrs["chain_method"] == "parallel"
    assert one.anchor_loss == other.anchor_loss
    assert abs(z_score(one.llc, other.llc, math.hypot(one.llc_mcse, other.llc_mcse))) < 4
    assert one.llc_mcse < 0.2 * one.llc


def test_a_chain_whose_process_dies_is_run_again_and_the_others_are_what_they_were(
    tmp_path: Path,
) -> None:
    first = os.getpid()

    def dying(y: Tensor) -> None:
        if os.getpid() != first and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        model(y)

    options: dict[str, Any] = {"num_samples": 5, "warmup_steps": 2}
    found = draws(fe.SGLD(dying, step_size=0.1), **options)
    assert (tmp_path / "died").exists()
    whole = draws(fe.SGLD(model, step_size=0.1), **options)
    np.testing.assert_array_equal(found.posterior["w"], whole.posterior["w"])


def test_a_chain_whose_process_dies_again_is_named() -> None:
    first = os.getpid()

    def dying(y: Tensor) -> None:
        if os.getpid() != first:
            os.kill(os.getpid(), signal.SIGKILL)
        model(y)

    with pytest.raises(RuntimeError, match="chain 0: its process died twice"):
        draws(fe.SGLD(dying, step_size=0.1), num_samples=5, warmup_steps=2)


def assert_equal_draws(one: xr.DataTree, other: xr.DataTree) -> None:
    for group in one.children:
        xr.testing.assert_identical(
            one[group].to_dataset().drop_attrs(), other[group].to_dataset().drop_attrs()
        )


def test_chains_at_an_executor_are_those_of_a_process_each(tmp_path: Path) -> None:
    forked = draws()
    assert_equal_draws(draws(chain_method="vectorized", n_jobs=1), forked)
    with ThreadPoolExecutor(2) as pool:
        assert_equal_draws(draws(executor=pool, save_to=tmp_path / "run.zarr"), forked)
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]
    context = multiprocessing.get_context("fork")
    start = {"w": torch.tensor([0.0, torch.inf, 1.0]), "scale": torch.zeros(3, 2)}
    with (
        ProcessPoolExecutor(2, context) as processes,
        pytest.warns(RuntimeWarning, match="^left out: chain 1, the gradient of w was not finite"),
    ):
        tree = draws(executor=processes, initial_params=start)
    assert tree.posterior.chain.values.tolist() == [0, 2]


@pytest.mark.thorough  # its processes import torch anew
def test_n_jobs_takes_a_program_that_is_defined_here() -> None:
    shift = torch.tensor(0.5)

    def shifted(y: Tensor) -> None:
        model(y - shift)

    assert_equal_draws(
        draws(fe.SGLD(shifted, step_size=0.1), n_jobs=2), draws(fe.SGLD(shifted, step_size=0.1))
    )


def test_what_an_executor_cannot_do_is_refused_or_named() -> None:
    with pytest.raises(ValueError, match="an executor each as a task"):
        draws(chain_method="sequential", n_jobs=2)
    with (
        pytest.raises(ValueError, match="executor and n_jobs are both given"),
        ThreadPoolExecutor(1) as pool,
    ):
        draws(executor=pool, n_jobs=2)
    with pytest.raises(ValueError, match="needs a run of fixed length"):
        draws(n_jobs=2, target_ess=100)
    lock, first = threading.Lock(), []

    def holding(y: Tensor) -> None:
        with lock:
            model(y)

    with pytest.raises(TypeError, match=r"^kernel cannot be pickled .*'_thread\.lock'"):
        draws(fe.SGLD(holding, step_size=0.1), n_jobs=1)

    def failing(y: Tensor) -> None:
        model(y)
        first.append(1)  # in this process: tasks work on copies
        if len(first) > 20:
            raise OSError("no data")

    with pytest.raises(RuntimeError, match="chain 0 failed, 2 times tried: no data"):
        draws(fe.SGLD(failing, step_size=0.1), n_jobs=1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_no_process_outlives_the_one_that_is_killed(tmp_path: Path) -> None:
    first = os.getpid()

    def sleeping(y: Tensor) -> None:
        if os.getppid() != first and os.getpid() != first:  # a grandchild: a chain's own process
            (tmp_path / str(os.getpid())).touch()
            time.sleep(60)
        model(y)

    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        draws(fe.SGLD(sleeping, step_size=0.1))
        os._exit(1)
    chains = min(3, os.cpu_count() or 1)
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < chains and time.monotonic() < until:
        time.sleep(0.1)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == chains
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # whoever adopted it has not asked how it ended
