"""A checkpoint against a network: names, shapes, ties and what the network keeps fixed."""

from __future__ import annotations

import pytest
import torch
from cases.checkpoints import Tied, expected, module, prefixed, state
from torch import nn

from ppl_fe.networks.checkpoints import load_checkpoint, read_checkpoint
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import CheckpointError


def test_the_vector_is_new_and_in_the_networks_dtype() -> None:
    only = nn.Linear(2, 1, bias=False)
    network = FlatNetwork(only.double())
    given = {"weight": torch.tensor([[1.0, 2.0]], dtype=torch.float64)}
    vector = load_checkpoint(given, network)
    vector.zero_()
    assert given["weight"].tolist() == [[1.0, 2.0]]
    half = load_checkpoint({"weight": torch.ones(1, 2, dtype=torch.bfloat16)}, network)
    assert half.dtype == torch.float64


def test_a_name_that_looks_like_a_prefix_stays() -> None:
    network = FlatNetwork(nn.ModuleDict({"model": nn.Linear(2, 1, bias=False)}))
    assert load_checkpoint({"model.weight": torch.ones(1, 2)}, network).tolist() == [1.0, 1.0]
    prefix = {"model.model.weight": torch.ones(1, 2)}
    assert load_checkpoint(prefix, network).tolist() == [1.0, 1.0]


def test_all_misfits_are_in_one_message() -> None:
    given = state()
    del given["0.bias"], given["1.running_var"]
    given |= {"2.weight": torch.ones(2, 2), "extra.a": torch.ones(1), "extra.b": torch.ones(1)}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(given, FlatNetwork(module()))
    message = str(caught.value)
    assert "missing from it (2): 0.bias, 1.running_var" in message
    assert "unexpected in it (2): extra.a, extra.b" in message
    assert "shape differs (1): 2.weight is (2, 2), the network has (2, 3)" in message


def test_a_prefix_does_not_hide_the_one_missing_name() -> None:
    given = prefixed("module.", state())
    del given["module.0.bias"]
    with pytest.raises(CheckpointError, match=r"missing from it \(1\): 0.bias$"):
        load_checkpoint(given, FlatNetwork(module()))


def test_long_lists_are_cut_with_exact_counts() -> None:
    given = state() | {f"extra{i}": torch.ones(1) for i in range(25)}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(given, FlatNetwork(module()))
    assert "unexpected in it (25): extra0" in str(caught.value)
    assert "extra9 and 15 more" in str(caught.value)
    assert "extra10" not in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), 1e300])
def test_values_that_are_not_finite_in_the_networks_dtype_are_named(bad: float) -> None:
    given = state()
    given["2.bias"] = torch.tensor([0.0, bad], dtype=torch.float64)
    with pytest.raises(CheckpointError, match=r"NaN or infinite .*\(1\): 2.bias"):
        load_checkpoint(given, FlatNetwork(module()))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8])
def test_entries_of_another_kind_are_named(dtype: torch.dtype) -> None:
    given = state() | {"2.bias": torch.ones(2, dtype=dtype)}
    with pytest.raises(CheckpointError, match=rf"dtype differs .*2.bias is {dtype}"):
        load_checkpoint(given, FlatNetwork(module()))


def test_duplicates_of_tied_weights_may_be_absent_or_present() -> None:
    network, weight = FlatNetwork(Tied()), torch.randn(5, 3)
    both = {"embedding.weight": weight, "head.weight": weight.clone()}
    for names in (["embedding.weight"], ["head.weight"], list(both)):
        given = {name: both[name] for name in names}
        assert torch.equal(load_checkpoint(given, network), weight.reshape(-1))
        assert torch.equal(network.with_state(given).anchor, weight.reshape(-1))
    both["head.weight"] += 1
    with pytest.raises(CheckpointError, match=r"tied .*head.weight and embedding.weight"):
        load_checkpoint(both, network)


def test_other_batch_norm_statistics_are_refused_until_with_state() -> None:
    given = state()
    given["1.running_mean"] = torch.tensor([1.0, 2.0, 3.0])
    network = FlatNetwork(module())
    with pytest.raises(CheckpointError, match=r"1.running_mean; use network.with_state\(read_ch"):
        load_checkpoint(given, network)
    other = network.with_state(read_checkpoint(given))
    assert torch.equal(load_checkpoint(given, other), other.anchor)
    assert torch.equal(other.anchor, expected())


def test_other_fixed_parameters_are_refused() -> None:
    network = FlatNetwork(module(), parameters=["2.bias"])
    with pytest.raises(
        CheckpointError, match=r"vector\) are not .*: 0\.weight, 0\.bias, 1\.weight"
    ):
        load_checkpoint(state(), network)
    own = module().state_dict() | {"2.bias": torch.tensor([7.0, 8.0])}
    assert load_checkpoint(own, network).tolist() == [7.0, 8.0]


def test_integer_counters_are_ignored() -> None:
    given = state()
    given["1.num_batches_tracked"] += 5
    assert torch.equal(load_checkpoint(given, FlatNetwork(module())), expected())
    del given["1.num_batches_tracked"]
    assert torch.equal(load_checkpoint(given, FlatNetwork(module())), expected())


def test_buffers_outside_the_persistent_state_may_be_absent() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.register_buffer("grid", torch.arange(3.0), persistent=False)
    network = FlatNetwork(layer)
    weight = {"weight": torch.ones(1, 1)}
    assert load_checkpoint(weight, network).tolist() == [1.0]
    assert load_checkpoint({**weight, "grid": torch.arange(3.0)}, network).tolist() == [1.0]
    with pytest.raises(CheckpointError, match="are not those of the state dict: grid"):
        load_checkpoint({**weight, "grid": torch.zeros(3)}, network)
    layer.register_buffer("mask", torch.tensor([True, False]))
    with pytest.raises(CheckpointError, match=r"missing from it \(1\): mask"):
        load_checkpoint(weight, FlatNetwork(layer))
