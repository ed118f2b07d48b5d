"""The data are split without overlap; networks end at one loss and depend on their settings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ppl_fe.demo.digits import Digits, embedded_digits
from ppl_fe.demo.pretraining import GRID, Checkpoint, Configuration, digits_network, pretrain
from ppl_fe.networks.flat import FlatNetwork

FAST = [Configuration(0.1, 64, 0.9), Configuration(0.2, 16, 0.0)]


def small() -> nn.Module:
    return digits_network(width=24)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return embedded_digits()


@pytest.fixture(scope="module")
def trained(digits: Digits) -> list[Checkpoint]:
    return pretrain(digits.training, FAST, build=small, target_loss=0.05)


def rows(images: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in images}


def test_no_image_is_in_two_parts(digits: Digits) -> None:
    tasks = [(task.images, task.labels) for task in digits.tasks.values()]
    parts = [digits.training, digits.validation, *tasks]
    sets = [rows(x) for x, _ in parts]
    assert [len(part) for part in sets] == [400, 150, 351, 896]
    assert len(set.union(*sets)) == 1797
    for x, y in parts:
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert x.min() >= 0.0
        assert x.max() <= 1.0
        assert set(y.tolist()) == {0, 1, 2, 3, 4}


def test_noise_belongs_to_one_task_and_is_no_variance(digits: Digits) -> None:
    assert {name: task.noise for name, task in digits.tasks.items()} == {
        "pixel noise": 0.5,
        "new classes": 0.0,
    }
    with pytest.raises(ValueError, match=r"noise=-1\.0"):
        embedded_digits(noise=-1.0)


def test_equal_seeds_give_equal_splits(digits: Digits) -> None:
    assert torch.equal(digits.training[0], embedded_digits().training[0])
    assert not torch.equal(digits.training[0], embedded_digits(seed=1).training[0])


def test_all_networks_end_at_the_target_loss(digits: Digits, trained: list[Checkpoint]) -> None:
    module = small()
    for checkpoint in trained:
        module.load_state_dict(checkpoint.state_dict)
        loss = nn.functional.cross_entropy(module(digits.training[0]), digits.training[1]).item()
        assert loss == pytest.approx(0.05, rel=1e-4)
        assert checkpoint.training_loss == pytest.approx(loss, rel=1e-5)


def test_checkpoints_are_named_and_differ(trained: list[Checkpoint]) -> None:
    assert [checkpoint.name for checkpoint in trained] == [
        "lr=0.1 batch=64 momentum=0.9 seed=0",
        "lr=0.1 batch=64 momentum=0.9 seed=1",
        "lr=0.2 batch=16 momentum=0 seed=0",
        "lr=0.2 batch=16 momentum=0 seed=1",
    ]
    weights = torch.stack([c.state_dict["0.weight"].flatten() for c in trained])
    assert torch.pdist(weights).min() > 1.0
    # Momentum 0.9 at half the rate is a fivefold effective rate, so it arrives much sooner.
    assert max(c.num_steps for c in trained[:2]) < min(c.num_steps for c in trained[2:])


def test_training_is_deterministic_and_leaves_the_global_generator_alone(
    digits: Digits, trained: list[Checkpoint]
) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = pretrain(digits.training, FAST, build=small, target_loss=0.05)
    assert torch.equal(state, torch.get_rng_state())
    for first, second in zip(trained, again, strict=True):
        assert first.num_steps == second.num_steps
        for name, value in first.state_dict.items():
            assert torch.equal(value, second.state_dict[name])


def test_one_step_is_stochastic_gradient_descent_with_momentum(digits: Digits) -> None:
    """A full batch of one repeated image leaves nothing random: compare with torch's optimiser."""
    x, y = digits.training[0][:1].repeat(4, 1), digits.training[1][:1].repeat(4)
    configurations = [Configuration(0.05, 2, 0.9), Configuration(0.05, 4, 0.9)]
    # The target lies under what the first five steps reach, so that no step is shortened there.
    trained = pretrain((x, y), configurations, [0], build=small, target_loss=1e-3)
    starts = pretrain((x, y), configurations, [0], build=small, target_loss=1e3)
    for start, end in zip(starts, trained, strict=True):
        module = small()
        module.load_state_dict(start.state_dict)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
        losses = []
        for _ in range(end.num_steps):
            optimiser.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(module(x), y))
            optimiser.step()
            losses.append(nn.functional.cross_entropy(module(x), y).item())
        # The run stopped at the first check, every five steps, that found the loss reached.
        assert losses[-1] <= 1e-3 < losses[-6]


def test_the_default_grid_has_at_least_sixteen_networks_without_mode_dependent_layers() -> None:
    assert 2 * len(GRID) >= 16
    assert len({str(configuration) for configuration in GRID}) == len(GRID)
    for field in ("learning_rate", "batch_size", "momentum"):
        assert len({getattr(configuration, field) for configuration in GRID}) > 1
    module, x = digits_network(), torch.rand(6, 64)
    assert torch.equal(module.train()(x), module.eval()(x))
    assert not list(module.buffers())


def test_failures_are_named(digits: Digits) -> None:
    slow = Configuration(1e-4, 16, 0.0)
    with pytest.raises(RuntimeError, match=r"in 10 steps: .*lr=0.0001 batch=16"):
        pretrain(digits.training, [slow], [0], build=small, max_steps=10)
    wild = Configuration(1e38, 16, 0.9)
    with pytest.raises(RuntimeError, match=r"diverged for \['lr=1e\+38 batch=16"):
        pretrain(digits.training, [wild], [0], build=small, max_steps=100)
    with pytest.raises(ValueError, match="0 networks on 400 examples"):
        pretrain(digits.training, [], [0])


def test_state_dicts_make_the_networks_vector(trained: list[Checkpoint]) -> None:
    network = FlatNetwork(small())
    vector = network.with_state(trained[0].state_dict).anchor
    assert torch.equal(network.unflatten(vector)["4.bias"], trained[0].state_dict["4.bias"])
