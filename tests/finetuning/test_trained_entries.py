"""Sparse training: the trained entries move as a dense optimiser would move them, others never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppl_fe.finetuning.train.trained_entries import (
    TrainedEntries,
    build_optimizer,
    check_mask,
    mask_entries,
)
from ppl_fe.networks.flat import FlatNetwork

RATE, DECAY, STEPS = 0.05, 0.1, 7
X = torch.randn(16, 3, generator=torch.Generator().manual_seed(61), dtype=torch.float64)


def module() -> nn.Sequential:
    torch.manual_seed(62)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Linear(2, 1)).double()


def network() -> FlatNetwork:
    return FlatNetwork(module())


def some_mask() -> Tensor:
    """Some of the first weight, all of its bias, none of the second layer, some of the third."""
    mask = torch.zeros(network().num_parameters, dtype=torch.bool)
    mask[[1, 5, 6]] = True
    mask[network().slices["0.bias"]] = True
    mask[network().slices["3.weight"].start] = True
    return mask


def objective(net: nn.Module) -> Tensor:
    value: Tensor = (net(X) - 1).square().mean()
    return value


def trained_by_steps(name: str, mask: Tensor) -> tuple[nn.Module, torch.optim.Optimizer]:
    net = module()
    trained = TrainedEntries(net, mask_entries(network(), mask))
    optimizer = build_optimizer(name, trained.leaves, RATE, DECAY)
    for _ in range(STEPS):
        trained.clear_gradients()
        objective(net).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        trained.write()
    return net, optimizer


def vector(net: nn.Module) -> Tensor:
    anchor: Tensor = FlatNetwork(net).anchor
    return anchor


def adamw(w: Tensor, g: Tensor, state: dict[str, Any]) -> Tensor:
    """Loshchilov & Hutter 2019, algorithm 2, with β = (0.9, 0.999)."""
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    v = state["v"] = 0.999 * state.get("v", 0) + 0.001 * g * g
    scaled = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    moved: Tensor = w - RATE * (scaled + DECAY * w)
    return moved


def sgd(w: Tensor, g: Tensor, state: dict[str, Any]) -> Tensor:
    g = g + DECAY * w
    m = state["m"] = 0.9 * state["m"] + g if "m" in state else g
    return w - RATE * m


@pytest.mark.parametrize(("name", "formula"), [("adamw", adamw), ("sgd", sgd)])
@pytest.mark.parametrize("whole", [False, True])
def test_trained_entries_follow_the_published_update(
    name: str, formula: Callable[..., Tensor], whole: bool
) -> None:
    net, mask = network(), some_mask() | whole
    w, state = net.anchor.clone(), dict[str, Any]()
    for _ in range(STEPS):
        slope = torch.func.grad(lambda v: (net(v, X) - 1).square().mean())(w)
        w = torch.where(mask, formula(w, slope, state), w)
    moved = vector(trained_by_steps(name, mask)[0])
    torch.testing.assert_close(moved, w, rtol=1e-10, atol=1e-12)
    assert (moved != net.anchor)[mask].all()
    # To the bit, weight decay or not.
    assert torch.equal(moved[~mask], net.anchor[~mask])


@pytest.mark.parametrize(("name", "numbers"), [("adamw", 2), ("sgd", 1)])
def test_the_optimiser_keeps_state_for_trained_entries_only(name: str, numbers: int) -> None:
    mask = some_mask()
    _, optimizer = trained_by_steps(name, mask)
    held = [
        tensor.numel()
        for state in optimizer.state.values()
        for key, tensor in state.items()
        if key != "step"
    ]
    assert sum(held) == numbers * int(mask.sum())


def test_dense_gradients_do_not_outlive_the_backward_pass() -> None:
    net = module()
    trained = TrainedEntries(net, mask_entries(network(), some_mask()))
    trained.clear_gradients()
    objective(net).backward()  # type: ignore[no-untyped-call]
    assert [n for n, p in net.named_parameters() if p.grad is not None] == ["0.bias"]
    assert [n for n, p in net.named_parameters() if p.requires_grad] == [
        "0.weight",
        "0.bias",
        "3.weight",
    ]


def test_a_tensor_that_a_pass_does_not_reach_has_no_gradient_left_over() -> None:
    net = module()
    trained = TrainedEntries(net, {"0.weight": torch.tensor([0]), "3.weight": torch.tensor([1])})
    trained.clear_gradients()
    objective(net).backward()  # type: ignore[no-untyped-call]
    assert trained.leaves[0].grad is not None
    assert (trained.leaves[0].grad != 0).all()
    trained.clear_gradients()
    net[3](torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    assert trained.leaves[0].grad.tolist() == [0.0, 1.0]


def test_memory_format_and_ties_do_not_matter() -> None:
    torch.manual_seed(63)
    conv = nn.Conv2d(3, 2, 2, bias=False)
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    assert not conv.weight.is_contiguous()
    tied = nn.ModuleDict({"a": conv, "b": conv})
    net = FlatNetwork(tied["a"])
    mask = torch.zeros(net.num_parameters, dtype=torch.bool)
    mask[[2, 3, 17]] = True
    (index,) = mask_entries(net, mask).values()
    trained = TrainedEntries(tied, {"a.weight": index})
    trained.clear_gradients()
    x = torch.randn(1, 3, 2, 2)
    (tied["a"](x).sum() + 2 * tied["b"](x).sum()).backward()
    assert trained.leaves[0].grad is not None
    expected = 3 * x.expand(2, 3, 2, 2).reshape(-1)
    torch.testing.assert_close(trained.leaves[0].grad, expected[mask])
    with torch.no_grad():
        trained.leaves[0].copy_(torch.tensor([5.0, 6.0, 7.0]))
    trained.write()
    moved = FlatNetwork(conv).anchor
    assert moved[mask].tolist() == [5.0, 6.0, 7.0]
    assert torch.equal(moved[~mask], net.anchor[~mask])


def test_restore_goes_back_in_leaves_and_module() -> None:
    net = module()
    trained = TrainedEntries(net, mask_entries(network(), some_mask()))
    start = trained.values()
    with torch.no_grad():
        for leaf in trained.leaves:
            leaf.add_(1.0)
    trained.write()
    assert not torch.equal(vector(net), network().anchor)
    trained.restore(start)
    assert torch.equal(vector(net), network().anchor)
    assert all(torch.equal(a, b) for a, b in zip(trained.leaves, start, strict=True))


def test_non_finite_gradients_are_named() -> None:
    net = module()
    trained = TrainedEntries(net, mask_entries(network(), some_mask()))
    trained.clear_gradients()
    broken = (net.get_parameter("3.weight") * torch.tensor(float("nan"))).sum()
    (objective(net) + broken).backward()  # type: ignore[no-untyped-call]
    assert trained.non_finite_gradients() == ["3.weight"]
    trained.clear_gradients()
    assert trained.non_finite_gradients() == []


def test_masks_that_do_not_fit_are_refused() -> None:
    net = network()
    size = net.num_parameters
    with pytest.raises(ValueError, match=rf"shape \({size},\).*got \({size + 1},\)"):
        check_mask(net, torch.ones(size + 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="False everywhere"):
        check_mask(net, torch.zeros(size, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"got torch\.float32; compare first"):
        check_mask(net, torch.ones(size))
    with pytest.raises(TypeError, match="got list"):
        check_mask(net, [True] * size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to train"):
        TrainedEntries(module(), {})


def test_the_head_is_found_by_prefix_of_whole_names() -> None:
    layers = nn.ModuleDict({"cls": nn.Linear(1, 1), "cls2": nn.Linear(1, 1, bias=False)})
    net = FlatNetwork(layers)
    assert net.head_names("cls") == ("cls.weight", "cls.bias")
    assert net.head_names("cls2.weight") == ("cls2.weight",)
    assert net.head_names(None) == ()
    with pytest.raises(ValueError, match=r"names no parameter; there are: cls\.weight"):
        net.head_names("head")
    with pytest.raises(ValueError, match=r"names no parameter; did you mean 'cls'\?"):
        net.head_names("cls3")
    with pytest.raises(ValueError, match="names every parameter"):
        FlatNetwork(nn.ModuleDict({"a": nn.Linear(1, 1)})).head_names("a")


def test_a_misspelt_head_of_a_large_network_is_told_its_parts() -> None:
    body = nn.Sequential(*(nn.Linear(1, 1) for _ in range(9)))
    net = FlatNetwork(nn.ModuleDict({"encoder": body, "classifier": nn.Linear(1, 1)}))
    with pytest.raises(ValueError, match=r"'clasifier' names no parameter; did you mean 'classif"):
        net.head_names("clasifier")
    with pytest.raises(ValueError, match=r"did you mean 'encoder\.3'\?"):
        net.head_names("encodr.3")
    with pytest.raises(ValueError, match=r"there are: encoder, classifier, encoder\.0, "):
        net.head_names("fc")


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match="'adamw' or 'sgd', got 'lion'"):
        build_optimizer("lion", [], 0.1, 0.0)
