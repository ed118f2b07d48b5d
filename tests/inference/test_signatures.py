"""Kernels and `sample` show all their arguments, and refuse those that they do not have."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_fe as fe
from ppl_fe import inference
from ppl_fe.inference.run_plan import RunLength, RunPlan
from ppl_fe.inference.targets import Targets

FAMILY = [fe.SGLD, fe.PSGLD, fe.SGHMC, fe.SGNHT, fe.BAOAB]
Y = torch.linspace(-1.0, 1.0, 6)
QUICK: dict[str, Any] = {
    "num_samples": 2,
    "warmup_steps": 0,
    "num_chains": 2,
    "compile": "eager",
    "progress_bar": False,
}


def model(y: Tensor, num_rows: int = 6) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", num_rows):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[:num_rows])


def defaults(call: Callable[..., Any]) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(call).parameters.items()}


@pytest.mark.parametrize("kernel", FAMILY)
def test_a_kernel_shows_the_base_s_arguments_and_its_own(kernel: type[fe.Kernel]) -> None:
    shown, base = defaults(kernel), defaults(fe.Kernel)
    assert shown.items() >= base.items()
    of_its_step = {"stiffness"} if kernel is fe.BAOAB else set()
    assert shown.keys() - base.keys() == kernel.dynamics.hyperparameters.keys() | of_its_step
    kinds = {name: one.kind for name, one in inspect.signature(kernel).parameters.items()}
    assert kinds.pop("model") == inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert set(kinds.values()) == {inspect.Parameter.KEYWORD_ONLY}
    for name, value in kernel.dynamics.hyperparameters.items():
        assert shown[name] in (value, "auto")  # no default is written twice and differs


@pytest.mark.parametrize("kernel", FAMILY)
def test_a_kernel_s_settings_are_its_arguments_and_in_its_repr(kernel: type[fe.Kernel]) -> None:
    made = kernel(model)
    settings = made.settings
    assert settings.pop("sampler") == kernel.__name__
    programs = ("model", "potential_fn")
    assert settings == {k: v for k, v in defaults(kernel).items() if k not in programs}
    assert repr(made).startswith(f"{kernel.__name__}(model, step_size='auto', temperature=1.0, ")
    assert all(f"{name}={value!r}" in repr(made) for name, value in settings.items())


def test_a_schedule_stands_in_the_repr() -> None:
    schedule = fe.schedules.Constant(0.1)
    assert "step_size=Constant(step_size=0.1)" in repr(fe.SGLD(model, step_size=schedule))


def test_a_sampler_that_only_names_its_dynamics_takes_their_defaults() -> None:
    class Mine(fe.Kernel):
        dynamics = fe.BAOAB.dynamics

    made = Mine(model, step_size=0.1)
    assert made.settings["friction"] == fe.BAOAB.dynamics.hyperparameters["friction"]
    assert repr(made).startswith("Mine(model, step_size=0.1,")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fe.SGLD(model, friction=1.0), r"SGLD\(\) has no argument 'friction'"),
        (lambda: fe.BAOAB(model, frction=1.0), r"BAOAB\(\) .*; did you mean friction\?"),
        (lambda: fe.Kernel(model, stepsize=1.0), r"Kernel\(\) .*; did you mean step_size\?"),
        (lambda: fe.schedules.Cyclical(0.1, 9, cycles=2), r"Cyclical\(\) has no argument 'cycles'"),  # type: ignore[call-arg]
    ],
)
def test_a_misspelt_setting_names_the_kernel(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_warmup": 5}, r"sample\(\) has no argument 'num_warmup'; it is called warmup_steps"),
        ({"num_sample": 5}, "did you mean num_samples"),
        ({"random_seed": 5}, "it is called seed here"),
        ({"num_row": 5}, "did you mean num_rows"),  # the program's own
    ],
)
def test_a_misspelt_argument_of_sample_is_refused_at_once(given: Any, message: str) -> None:
    began = time.perf_counter()
    with pytest.raises(TypeError, match=message):
        fe.sample(fe.BAOAB(model), Y, **given)
    assert time.perf_counter() - began < 0.1


def test_the_program_s_own_arguments_pass() -> None:
    kernel = fe.SGLD(model, step_size=0.01)
    assert fe.sample(kernel, Y, num_rows=4, **QUICK).attrs["num_data"] == 4
    assert fe.sample(kernel, y=Y, **QUICK).attrs["num_data"] == 6

    def takes_all(**given: Any) -> None:
        model(given["tune"])

    assert fe.sample(fe.SGLD(takes_all, step_size=0.01), tune=Y, **QUICK).attrs["num_data"] == 6


def test_sample_has_the_defaults_of_its_plan() -> None:
    shown = defaults(fe.sample)
    for bundle in (RunLength, RunPlan):
        for name, default in defaults(bundle).items():
            if name in vars(RunLength()) | vars(Targets()):  # none given: as many as it takes
                assert shown.get(name) is None
            elif name not in ("length", "until", "progress"):  # a call shows a bar, a plan none
                assert shown[name] == default, name


def test_every_public_call_shows_its_arguments() -> None:
    calls = [getattr(fe, name) for name in fe.__all__]
    hidden = [
        call.__name__
        for call in calls
        if inspect.isfunction(call) or (inspect.isclass(call) and not issubclass(call, Exception))
        if any(one.kind is one.VAR_KEYWORD for one in inspect.signature(call).parameters.values())
    ]
    pass_on = {"add_log_likelihood", "add_posterior_predictive", "prior_predictive", "sample"}
    assert {*hidden} == pass_on  # to the program


def test_the_engine_exports_what_the_package_does() -> None:
    assert {"sample", "schedules", "Kernel", "BAOAB"} <= set(inference.__all__)
    for name in inference.__all__:
        assert getattr(fe, name) is getattr(inference, name)


def test_dir_lists_what_is_public() -> None:
    assert set(dir(fe)) == {*fe.__all__, "MaskedTraining"}
