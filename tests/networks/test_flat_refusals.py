"""FlatNetwork refuses what cannot be one vector, and names it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ppl_fe.networks.flat import FlatNetwork


def with_parameter(name: str, value: Tensor) -> nn.Module:
    module = nn.Linear(2, 1)
    module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return module


def test_bad_modules_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        FlatNetwork(nn.ReLU())
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got dict"):
        FlatNetwork({})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"wrapped in DataParallel; pass module\.module"):
        FlatNetwork(nn.DataParallel(nn.Linear(2, 1)))
    for value in (torch.ones(1, dtype=torch.complex64), torch.ones(1, dtype=torch.int8)):
        with pytest.raises(ValueError, match=r"not real floating point: odd \(torch\.\w+\)"):
            FlatNetwork(with_parameter("odd", value))
        assert FlatNetwork(with_parameter("odd", value), ["weight", "bias"]).num_parameters == 3
    with pytest.raises(ValueError, match=r"float32 on cpu: weight, bias; .*float64 on cpu: odd"):
        FlatNetwork(with_parameter("odd", torch.ones(1, dtype=torch.float64)))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite values: odd"):
            FlatNetwork(with_parameter("odd", torch.tensor([1.0, bad])))
    with pytest.raises(ValueError, match=r"without values yet.*: weight"):
        FlatNetwork(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"without values yet.*: weight, bias"):
        FlatNetwork(nn.Linear(2, 1, device="meta"))
    with pytest.raises(ValueError, match="hold no values: odd"):
        FlatNetwork(with_parameter("odd", torch.ones(0)), ["odd"])


def test_buffers_may_be_infinite_but_not_nan() -> None:
    module = nn.Linear(2, 1)
    module.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    assert FlatNetwork(module).num_parameters == 3
    module.register_buffer("mask", torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="NaN or infinite values: mask"):
        FlatNetwork(module)


def test_bad_choices_are_refused() -> None:
    module = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="names 2 that the module has not: a, b; it has: weight"):
        FlatNetwork(module, ["a", "weight", "b"])
    with pytest.raises(ValueError, match="chooses none of: weight, bias"):
        FlatNetwork(module, lambda name: name == "head")
    with pytest.raises(TypeError, match=r"pass \['weight'\]"):
        FlatNetwork(module, "weight")
