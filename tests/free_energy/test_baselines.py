"""Baselines against closed forms and against loops over one example at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ppl_fe.free_energy.baselines.columns import baseline_columns
from ppl_fe.free_energy.baselines.features import last_linear, layer_inputs
from ppl_fe.free_energy.baselines.gaussian_perturbation import NUM_DRAWS, perturbed_loss
from ppl_fe.free_energy.baselines.geometric_complexity import geometric_complexity
from ppl_fe.free_energy.baselines.neural_collapse import neural_collapse
from ppl_fe.networks.flat import FlatNetwork


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def small_network() -> FlatNetwork:
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    network = FlatNetwork(module)
    network.anchor = torch.randn(network.anchor.shape, generator=generator())
    return network


def small_data(number: int = 150) -> tuple[Tensor, Tensor]:
    return torch.randn(number, 3, generator=generator()), torch.arange(number) % 2


def test_linear_features_have_the_norm_of_their_weights() -> None:
    network = FlatNetwork(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)))
    weights = network.unflatten(network.anchor)["0.weight"]
    value = geometric_complexity(network, network.anchor, torch.randn(100, 3), "1", chunk_size=7)
    assert value == pytest.approx(weights.square().sum().item(), rel=1e-5)


def test_geometric_complexity_equals_a_loop_over_examples_and_features() -> None:
    network, (inputs, _) = small_network(), small_data(9)
    w = network.unflatten(network.anchor)
    total = 0.0
    for x in inputs:
        x = x.clone().requires_grad_()
        hidden = torch.tanh(w["0.weight"] @ x + w["0.bias"])
        for feature in torch.tanh(w["2.weight"] @ hidden + w["2.bias"]):
            (slope,) = torch.autograd.grad(feature, x, retain_graph=True)
            total += slope.square().sum().item()
    value = geometric_complexity(network, network.anchor, inputs, "4", chunk_size=4)
    assert value == pytest.approx(total / 9, rel=1e-5)


def test_geometric_complexity_of_images_counts_every_pixel() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(8, 2))
    network = FlatNetwork(module)
    value = geometric_complexity(network, network.anchor, torch.randn(5, 1, 3, 3), "2")
    kernel = network.unflatten(network.anchor)["0.weight"]
    assert value == pytest.approx(4 * kernel.square().sum().item(), rel=1e-5)


def test_features_are_what_enters_the_head_and_leave_no_hook_behind() -> None:
    network, (inputs, _) = small_network(), small_data()
    entered = layer_inputs(network, network.anchor, inputs, "4")
    w = network.unflatten(network.anchor)
    torch.testing.assert_close(
        entered @ w["4.weight"].T + w["4.bias"], network(network.anchor, inputs)
    )
    assert not network.module.get_submodule("4")._forward_pre_hooks


def test_features_work_for_many_vectors_at_once() -> None:
    network, (inputs, _) = small_network(), small_data(5)
    vectors = torch.stack([network.anchor, -network.anchor])
    together = torch.func.vmap(lambda vector: layer_inputs(network, vector, inputs, "4"))(vectors)
    for vector, rows in zip(vectors, together, strict=True):
        torch.testing.assert_close(rows, layer_inputs(network, vector, inputs, "4"))


def test_neural_collapse_of_planted_gaussians() -> None:
    # Three classes in F dimensions, spreads s and mean distance d: V = F (s_i² + s_j²) / (2 d²).
    number, size = 40_000, 4
    means = 10.0 * torch.eye(size)[:3]
    spreads = torch.tensor([0.5, 1.0, 2.0])
    labels = torch.arange(3 * number) % 3
    noise = torch.randn(3 * number, size, generator=generator())
    value = neural_collapse(means[labels] + spreads[labels, None] * noise, labels)
    pairs = [(0.25 + 1.0), (0.25 + 4.0), (1.0 + 4.0)]
    expected = sum(size * pair / (2 * 200.0) for pair in pairs) / 3
    # The widest class dominates: its variance has a relative error of sqrt(2 / (F n)).
    assert abs(value / expected - 1) < 5 * math.sqrt(2 / (size * number))


def test_neural_collapse_equals_a_loop_and_ignores_the_order_and_names_of_classes() -> None:
    x = torch.randn(30, 5, generator=generator(), dtype=torch.float64)
    y = torch.arange(30) % 4
    value, count = 0.0, 0
    for i in range(4):
        for j in range(i + 1, 4):
            a, b = x[y == i], x[y == j]
            spread = ((a - a.mean(0)) ** 2).sum() / len(a) + ((b - b.mean(0)) ** 2).sum() / len(b)
            value += (spread / (2 * ((a.mean(0) - b.mean(0)) ** 2).sum())).item()
            count += 1
    assert neural_collapse(x, y) == pytest.approx(value / count, rel=1e-12)
    assert neural_collapse(x.flip(0), 7 * y.flip(0)) == pytest.approx(value / count, rel=1e-12)


def test_collapsed_classes_give_zero_and_shared_means_infinity() -> None:
    points = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert neural_collapse(points.repeat(5, 1), torch.arange(10) % 2) == 0.0
    same_mean = torch.tensor([[-1.0], [1.0], [-2.0], [2.0]])
    assert neural_collapse(same_mean, torch.tensor([0, 0, 1, 1])) == math.inf


def test_the_perturbed_loss_of_a_line_is_its_curvature() -> None:
    # L(w) = ½ Σ_j h_j (w_j − w*_j)² + const of orthogonal inputs: E = ½ σ² Σ h_j exactly.
    module = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[3.0, -3.0, 3.0, 3.0]]))
    network = FlatNetwork(module)
    inputs = 2 * torch.eye(4)
    data = inputs, module(inputs).detach()[:, 0]
    found = perturbed_loss(network, network.anchor, data, likelihood="normal", relative_size=0.5)
    generator = torch.Generator().manual_seed(0)
    squares = torch.randn((NUM_DRAWS, 4), generator=generator).square().mean()
    expected = 0.5 * 1.5**2 * 4 * squares.item() + 0.5 * math.log(2 * math.pi)
    assert found == pytest.approx(expected, rel=1e-5)
    at_rest = perturbed_loss(network, network.anchor, data, likelihood="normal", relative_size=0.0)
    assert at_rest == pytest.approx(0.5 * math.log(2 * math.pi), rel=1e-6)


def test_dispatcher_gives_every_key_for_the_anchor() -> None:
    network, data = small_network(), small_data()
    entered = layer_inputs(network, network.anchor, data[0], "4")
    assert baseline_columns(network, data) == {
        "geometric_complexity": geometric_complexity(network, network.anchor, data[0], "4"),
        "neural_collapse": neural_collapse(entered, data[1]),
        "perturbed_loss": perturbed_loss(network, network.anchor, data),
    }
    other = baseline_columns(network, data, layer="2")
    assert other["geometric_complexity"] != baseline_columns(network, data)["geometric_complexity"]


def test_what_has_no_meaning_for_the_data_is_left_out() -> None:
    regression = FlatNetwork(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)))
    rows = torch.randn(6, 3), torch.randn(6, 1)
    assert set(baseline_columns(regression, rows, likelihood="normal")) == {
        "geometric_complexity",
        "perturbed_loss",
    }
    tokens = FlatNetwork(nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)))
    data = torch.randint(5, (8, 2)), torch.arange(8) % 2
    assert set(baseline_columns(tokens, data)) == {"neural_collapse", "perturbed_loss"}


def test_errors_name_the_argument() -> None:
    network, (inputs, targets) = small_network(), small_data()
    w = network.anchor
    with pytest.raises(ValueError, match="features='9' is no submodule"):
        layer_inputs(network, w, inputs, "9")
    named = FlatNetwork(nn.ModuleDict({"encoder": nn.Linear(1, 1), "pooler": nn.Linear(1, 1)}))
    with pytest.raises(ValueError, match=r"'pooller' is no submodule; did you mean 'pooler'\?"):
        layer_inputs(named, named.anchor, inputs, "pooller")
    with pytest.raises(ValueError, match="only floating inputs"):
        geometric_complexity(network, w, torch.zeros(3, 3, dtype=torch.int64), "4")
    with pytest.raises(ValueError, match="integer classes"):
        neural_collapse(inputs, targets.float())
    with pytest.raises(ValueError, match="two or more"):
        neural_collapse(inputs, torch.zeros_like(targets))
    with pytest.raises(ValueError, match="no linear submodule"):
        last_linear(FlatNetwork(nn.Conv1d(1, 1, 1)))


def test_a_head_that_is_never_called_is_named() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.used(x)
            return output

    network = FlatNetwork(Unused())
    with pytest.raises(ValueError, match="features='unused' is not called"):
        layer_inputs(network, network.anchor, torch.zeros(1, 3), "unused")
