"""Eager, traced and compiled are one step: the same draws, and fallbacks that say so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from cases.stored_runs import stopping_after
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference import adjusted
from ppl_fe.inference.step import compile as compiling
from ppl_fe.inference.step.compile import build

# Runs too short to warm up: what is shown here does not need it.
pytestmark = pytest.mark.filterwarnings("ignore:warmup_steps=:RuntimeWarning")

X = torch.linspace(-1.0, 1.0, 12)
Y = 0.7 * X + 0.2


def model(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    sd = pyro.sample("sd", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", len(x), subsample_size=4) as ix:
        pyro.sample("y", dist.Normal(slope * x[ix], sd), obs=y[ix])


AUTOMATIC = fe.BAOAB(model)
BY_HAND = fe.SGLD(model, step_size=0.01)  # nothing to warn of but the compiler


def draws(mode: Any, kernel: fe.Kernel = AUTOMATIC, **arguments: Any) -> xr.DataTree:
    return fe.sample(
        kernel,
        X,
        Y,
        num_samples=60,
        warmup_steps=40,
        num_chains=2,
        seed=3,
        compile=mode,
        progress_bar=False,
        **arguments,
    )


def assert_same_draws(one: xr.DataTree, other: xr.DataTree, atol: float = 1e-4) -> None:
    for name in ("slope", "sd"):
        np.testing.assert_allclose(one.posterior[name], other.posterior[name], atol=atol)
    np.testing.assert_allclose(one.sample_stats["lp"], other.sample_stats["lp"], atol=1e-2)


@cache
def traced(*, automatic: bool) -> xr.DataTree:
    return draws("traced", AUTOMATIC if automatic else BY_HAND)


@pytest.mark.parametrize("automatic", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_traced_draws_are_the_eager_ones(automatic: bool) -> None:
    eager, found = draws("eager", AUTOMATIC if automatic else BY_HAND), traced(automatic=automatic)
    assert (eager.attrs["compile"], found.attrs["compile"]) == ("eager", "traced")
    assert_same_draws(eager, found)
    assert (eager.posterior["slope"].std("draw") > 0.01).all()  # they did move


def test_sequential_draws_are_the_vectorized_ones() -> None:
    alone = draws("traced", BY_HAND, chain_method="sequential")
    assert_same_draws(traced(automatic=False), alone)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_draws_are_the_traced_ones() -> None:
    compiled = draws("compiled")
    assert compiled.attrs["compile"] == "compiled"
    assert_same_draws(compiled, traced(automatic=True))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="no such chip")
def test_a_product_and_a_sum_are_rounded_once_if_asked() -> None:
    def product_and_sum(x: Tensor, y: Tensor) -> Sequence[Tensor]:
        return [x * x - y]

    # The last digit of (1 + 2⁻¹²)² is lost by float32 when it is rounded by itself.
    example = torch.full((64,), 1 + 2.0**-12), torch.full((64,), 1 + 2.0**-11)
    for fused, expected in ((False, 0.0), (True, 2.0**-24)):
        run = compiling.build(product_and_sum, example, "compiled", 1, fused=fused).run
        assert set(run(*example)[0].tolist()) == {expected}


def test_without_a_cpp_compiler_the_traced_graph_runs_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = traced(automatic=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler.*compile='traced'") as told:
        fallen_back = draws("compiled", BY_HAND)
    assert len(told) == 1
    assert fallen_back.attrs["compile"] == "traced"
    assert_same_draws(fallen_back, plain, atol=0.0)


# Of torch itself, where this test is the first to import Inductor; the package hides it as well.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is dep:DeprecationWarning")
def test_a_failing_compiler_is_told_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **options: Any) -> None:
        raise RuntimeError("ld: cannot find -lgomp\nmore")

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", fail)
    with pytest.warns(RuntimeWarning, match="RuntimeError: ld: cannot find -lgomp") as told:
        fallen_back = draws("compiled", BY_HAND)
    assert len(told) == 1
    assert fallen_back.attrs["compile"] == "traced"


def test_a_compiler_that_lacks_an_instruction_is_asked_for_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def by_inductor(graph: Any, example: Any, options: dict[str, Any]) -> Callable[..., Any]:
        asked.append(options.get("cpp.vec_isa_ok"))
        if asked[-1]:
            raise RuntimeError("g++: unrecognized option -mamx-tile")
        return lambda *arguments: graph(*arguments)

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(compiling, "_by_inductor", by_inductor)
    assert compiling.build(cube, (torch.eye(2),), "compiled", 1).mode == "compiled"
    assert asked == [True, None]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_what_was_compiled_is_kept_whole_and_the_processor_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._dynamo.utils import counters
    from torch._inductor.cpu_vec_isa import VecISA, valid_vec_isa_list

    def probe(isa: Any, code: str) -> bool:
        assert code != VecISA._avx_code
        return True

    monkeypatch.setattr(VecISA, "check_build", probe)
    valid_vec_isa_list.cache_clear()
    example = (torch.eye(3) + 0.25,)
    first = compiling.build(cube, example, "compiled", 1).run
    hits = counters["inductor"]["fxgraph_cache_hit"]
    again = compiling.build(cube, example, "compiled", 1).run
    assert counters["inductor"]["fxgraph_cache_hit"] == hits + 1
    assert torch.equal(first(*example)[0], again(*example)[0])


def cube(x: Tensor) -> Sequence[Tensor]:
    return [x @ x @ x]


def test_auto_compiles_when_the_run_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    example = (torch.eye(64),)
    graph = compiling.trace(cube, example)
    seconds = compiling.predicted_seconds(graph, example, 1)
    assert seconds >= 2 * 2 * 64**3 / 2e10  # two products of 2 n^3 operations
    assert compiling.predicted_seconds(graph, example, 1000) == pytest.approx(1000 * seconds)
    enough = int(compiling.WORTH_COMPILING_SECONDS / seconds)

    monkeypatch.setattr(compiling, "compile_graph", pretend)
    for _ in range(3):  # counted, not timed
        assert compiling.build(cube, example, "auto", int(0.99 * enough)).mode == "traced"
        assert compiling.build(cube, example, "auto", int(1.01 * enough) + 1).mode == "compiled"


def pretend(graph: Callable[..., Any], example: Any, **_: Any) -> Callable[..., Any]:
    """Stand for the compiler, whose code computes what the graph does."""
    return lambda *arguments: graph(*arguments)


def regression(x: Tensor, offset: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slope + offset.sum(-1), 0.5), obs=y)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("kernel", [fe.MALT, pytest.param(fe.BAOAB, marks=pytest.mark.slow)])
def test_data_may_have_any_strides(kernel: Any) -> None:
    """Every second column, columns of rows, and one number repeated, as slices of frames are."""
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(20, 6, generator=generator)[:, ::2] for _ in range(2))
    offset = torch.randn(20, 1, generator=generator).expand(20, 3)

    def drawn(mode: Any) -> xr.DataTree:
        # So that the metric, too, is one that was learnt.
        return fe.sample(
            kernel(regression), x, offset, y[:, 0], num_samples=30, compile=mode, progress_bar=False
        )

    traced, compiled = drawn("traced"), drawn("compiled")
    assert compiled.attrs["compile"] == "compiled"
    np.testing.assert_allclose(compiled.posterior["slope"], traced.posterior["slope"], atol=1e-3)


def one_normal() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("kernel", [fe.MALT(one_normal), fe.BAOAB(one_normal)])
def test_a_run_that_turns_out_long_is_compiled_on_the_way(
    kernel: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def sampled(**more: Any) -> xr.DataTree:
        lengths: dict[str, Any] = {"num_samples": 50, "target_ess": 100.0}
        return fe.sample(kernel, **lengths, seed=1, progress_bar=False, **more)

    monkeypatch.setattr(compiling, "compile_graph", pretend)
    monkeypatch.setattr(compiling, "predicted_seconds", lambda graph, example, calls: float(calls))
    monkeypatch.setattr(adjusted, "EXPECTED_TRAJECTORIES", 1)
    # Of the steps that are expected at the start and after the first looks none is so long, those
    # after the third are: it has let every second draw go three times.
    monkeypatch.setattr(compiling, "WORTH_COMPILING_SECONDS", 1000.0)
    whole = sampled()
    assert whole.attrs["compile"] == "compiled"
    assert whole.attrs["thinning"] == 8 * (1 if isinstance(kernel, fe.MALT) else 2)
    path = tmp_path / "run.zarr"
    last = int(whole.attrs["warmup_steps"]) + 49 * int(whole.attrs["thinning"])
    with stopping_after(last), pytest.warns(RuntimeWarning, match="resume=True goes on"):
        sampled(save_to=path)
    resumed = sampled(save_to=path, resume=True)
    assert resumed.attrs["compile"] == "compiled"
    monkeypatch.setattr(compiling, "WORTH_COMPILING_SECONDS", inf)
    traced = sampled()
    assert traced.attrs["compile"] == "traced"
    for other in (resumed, traced):
        xr.testing.assert_identical(
            other.posterior.to_dataset().drop_attrs(), whole.posterior.to_dataset().drop_attrs()
        )


def test_data_are_inputs_of_the_graph_not_constants() -> None:
    graph = compiling.trace(cube, (torch.eye(2),))
    torch.testing.assert_close(graph(2 * torch.eye(2))[0], 8 * torch.eye(2))


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile must be one of .*'fast'"):
        draws("fast")


def test_no_function_is_built_in_an_unknown_mode() -> None:
    wrong: Any = "quickly"
    with pytest.raises(ValueError, match=r"compile must be one of .*, got 'quickly'"):
        build(lambda x: [x], [torch.zeros(1)], wrong, 1)
