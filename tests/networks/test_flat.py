"""FlatNetwork: a module as a pure function of one vector."""

from __future__ import annotations

import copy
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases.checkpoints import Tied
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import ppl_fe as fe
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import CheckpointError


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(12, 2),
    )  # fmt: skip
    module(torch.randn(8, 1, 4, 4))  # gives the batch-norm statistics something to remember
    return module


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, *, values: Tensor, scale: Tensor) -> Any:
        return SimpleNamespace(loss=None, logits=self.layer(values) * scale)


def test_anchor_follows_named_parameters() -> None:
    module = convolutional()
    network = FlatNetwork(module)
    expected = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    assert torch.equal(network.anchor, expected)
    assert not network.anchor.requires_grad
    assert network.names == tuple(name for name, _ in module.named_parameters())
    assert network.shapes == tuple(p.shape for p in module.parameters())
    assert network.num_parameters == len(expected)
    for name, parameter in module.named_parameters():
        assert torch.equal(expected[network.slices[name]].view(parameter.shape), parameter)


def test_output_is_the_module_in_evaluation_mode() -> None:
    module = convolutional()
    inputs = torch.randn(4, 1, 4, 4)
    network = FlatNetwork(module)
    assert module.training
    assert torch.equal(network(network.anchor, inputs), copy.deepcopy(module).eval()(inputs))


def test_the_callers_module_and_the_statistics_never_change() -> None:
    module = convolutional()
    before = copy.deepcopy(module.state_dict())
    network = FlatNetwork(module)
    grad(lambda w: network(w, torch.randn(4, 1, 4, 4)).sum())(network.anchor)
    network.module.get_buffer("1.running_mean").add_(1.0)
    network.anchor.add_(1.0)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_batch_norm_does_not_see_the_batch() -> None:
    network = FlatNetwork(convolutional())
    inputs = torch.randn(4, 1, 4, 4)
    statistics = network.module.get_buffer("1.running_mean").clone()
    whole = network(network.anchor, inputs)
    torch.testing.assert_close(whole[:1], network(network.anchor, inputs[:1]))
    assert torch.equal(network.module.get_buffer("1.running_mean"), statistics)


def test_gradient_is_the_modules_own() -> None:
    module = convolutional().eval()
    inputs = torch.randn(4, 1, 4, 4)
    module(inputs).square().sum().backward()
    expected = torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])
    network = FlatNetwork(module)
    actual = grad(lambda w: network(w, inputs).square().sum())(network.anchor)
    torch.testing.assert_close(actual, expected)
    assert all(p.grad is None for p in network.module.parameters())


@pytest.mark.parametrize("batched_inputs", [False, True])
def test_vmap_over_chains(batched_inputs: bool) -> None:
    network = FlatNetwork(convolutional())
    vectors = network.anchor + 0.1 * torch.randn(3, network.num_parameters)
    inputs = torch.randn(3, 4, 1, 4, 4)
    given = inputs if batched_inputs else inputs[0]
    dims = (0, 0 if batched_inputs else None)
    outputs = vmap(network, in_dims=dims)(vectors, given)
    gradients = vmap(grad(lambda w, x: network(w, x).square().sum()), in_dims=dims)(vectors, given)
    for chain, vector in enumerate(vectors):
        x = inputs[chain] if batched_inputs else inputs[0]
        torch.testing.assert_close(outputs[chain], network(vector, x))
        alone = grad(lambda w, x=x: network(w, x).square().sum())(vector)
        torch.testing.assert_close(gradients[chain], alone)


def test_make_fx_traces_the_step_of_all_chains() -> None:
    network = FlatNetwork(convolutional())
    inputs = torch.randn(4, 1, 4, 4)
    function = vmap(grad(lambda w, x: network(w, x).sum()), in_dims=(0, None))
    vectors = network.anchor.repeat(2, 1)
    traced = make_fx(function)(vectors, inputs)
    other = vectors + torch.randn_like(vectors)
    torch.testing.assert_close(traced(other, 2 * inputs), function(other, 2 * inputs))


def test_tied_weights_appear_once_and_move_together() -> None:
    module = Tied()
    network = FlatNetwork(module)
    ids = torch.tensor([0, 3])
    assert network.names == ("embedding.weight",)
    assert network.num_parameters == 15
    weight = 2 * network.anchor.view(5, 3)
    torch.testing.assert_close(network(2 * network.anchor, ids), weight[ids] @ weight.T)
    assert FlatNetwork(module, parameters=["head.weight"]).names == ("embedding.weight",)
    by_predicate = FlatNetwork(module, parameters=lambda name: name.startswith("head"))
    assert by_predicate.names == ("embedding.weight",)


def test_a_mapping_goes_by_keyword_and_logits_come_back() -> None:
    network = FlatNetwork(ByKeyword())
    values, scale = torch.randn(4, 2), torch.tensor(3.0)
    output = network(network.anchor, {"values": values, "scale": scale})
    torch.testing.assert_close(output, 3 * network.module.get_submodule("layer")(values))
    batched = vmap(network, in_dims=(0, None))(
        network.anchor.repeat(2, 1), {"values": values, "scale": scale}
    )
    torch.testing.assert_close(batched, output.repeat(2, 1, 1))


def test_several_inputs_go_by_position() -> None:
    network = FlatNetwork(nn.Bilinear(2, 3, 1))
    a, b = torch.randn(4, 2), torch.randn(4, 3)
    assert torch.equal(network(network.anchor, a, b), network.module(a, b))


@pytest.mark.parametrize("chosen", [["5.bias", "0.weight"], lambda name: name in "0.weight5.bias"])
def test_a_subset_moves_and_the_rest_stays(chosen: Any) -> None:
    network = FlatNetwork(convolutional(), parameters=chosen)
    assert network.names == ("0.weight", "5.bias")
    assert network.num_parameters == 27 + 2
    inputs = torch.randn(4, 1, 4, 4)
    shift = torch.cat([torch.zeros(27), torch.tensor([1.0, -2.0])])
    moved = network(network.anchor + shift, inputs) - network(network.anchor, inputs)
    torch.testing.assert_close(moved, torch.tensor([[1.0, -2.0]]).repeat(4, 1))


def test_unflatten_gives_views_and_flatten_inverts() -> None:
    network = FlatNetwork(convolutional())
    vector = torch.randn(network.num_parameters)
    views = network.unflatten(vector)
    assert all(v.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
               for v in views.values())  # fmt: skip
    assert torch.equal(network.flatten(dict(reversed(views.items()))), vector)


def test_flatten_names_every_misfit() -> None:
    network = FlatNetwork(nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"bias is missing, c is unexpected, weight is \(2,\)"):
        network.flatten({"weight": torch.ones(2), "c": torch.ones(1)})


@pytest.mark.parametrize("shape", [(2,), (4,), (1, 3), ()])
def test_a_vector_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    network = FlatNetwork(nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"vector must have shape \(3,\)"):
        network(torch.zeros(shape), torch.ones(1, 2))


def test_with_state_takes_parameters_and_buffers() -> None:
    network = FlatNetwork(convolutional(), parameters=["5.weight", "5.bias"])
    other = convolutional()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    other(3 + torch.randn(8, 1, 4, 4))
    anchor = network.anchor.clone()
    loaded = network.with_state(other.state_dict())
    inputs = torch.randn(4, 1, 4, 4)
    assert loaded.names == network.names
    assert torch.equal(loaded(loaded.anchor, inputs), other.eval()(inputs))
    seen = "1.num_batches_tracked"
    assert torch.equal(loaded.module.get_buffer(seen), other.get_buffer(seen))
    assert torch.equal(network.anchor, anchor)
    assert not torch.equal(network(anchor, inputs), other(inputs))


def test_with_state_is_strict_but_takes_off_a_prefix() -> None:
    network = FlatNetwork(nn.Linear(2, 1))
    with pytest.raises(CheckpointError, match=r"missing from it \(1\): bias"):
        network.with_state({"weight": torch.ones(1, 2)})
    state = {"module.weight": torch.ones(1, 2), "module.bias": torch.zeros(1)}
    assert network.with_state(state).anchor.tolist() == [1.0, 1.0, 0.0]


def test_dtype_follows_the_module() -> None:
    network = FlatNetwork(nn.Linear(2, 1).double())
    assert network.dtype == network.anchor.dtype == torch.float64
    assert network.flatten({"weight": torch.ones(1, 2), "bias": torch.ones(1)}).dtype == (
        torch.float64
    )


def test_repr_says_what_moves() -> None:
    module = nn.Linear(2, 3)
    assert repr(FlatNetwork(module)) == (
        "FlatNetwork(Linear, 9 parameters in 2 tensors, float32, cpu)"
    )
    assert repr(FlatNetwork(module, ["bias"])) == (
        "FlatNetwork(Linear, 3 of 9 parameters in 1 of 2 tensors, float32, cpu)"
    )


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
    with pytest.raises(ValueError, match="parameters: 'a', 'b' match none; there are: weight"):
        FlatNetwork(module, ["a", "weight", "b"])
    with pytest.raises(ValueError, match=r"'wieght' matches none; did you mean 'weight'\?"):
        FlatNetwork(module, ["wieght"])
    with pytest.raises(ValueError, match="chooses none of: weight, bias"):
        FlatNetwork(module, lambda name: name == "head")
    assert FlatNetwork(module, "weight").names == ("weight",)


def test_plots_and_models_are_found_through_the_package() -> None:
    assert fe._find("plots") is import_module("ppl_fe.plots")
    assert fe._find("models") is import_module("ppl_fe.models")
    with pytest.raises(AttributeError, match="module 'ppl_fe' has no attribute 'modles'"):
        fe._find("modles")
