"""Few-shot transfer against a plain loop, on tasks whose answer is known, and its errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ppl_fe.demo.digits import Task
from ppl_fe.demo.transfer import FewShot, Transfer, episodes, transfer
from ppl_fe.networks.flat import FlatNetwork


def network() -> FlatNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FlatNetwork(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))


def clusters(number: int = 60, distance: float = 2.0, noise: float = 0.0) -> Task:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(number) % 3
    centres = distance * torch.eye(6)[:3]
    return Task(centres[labels] + torch.randn(number, 6, generator=generator), labels, noise)


def vectors(flat: FlatNetwork, number: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return flat.anchor + 0.3 * torch.randn(number, flat.num_parameters, generator=generator)


def test_episodes_hold_the_shots_of_each_class_and_test_on_all_the_rest() -> None:
    labels = clusters().labels
    support, rest = episodes(labels, 4, 5, torch.Generator().manual_seed(0))
    assert support.shape == (5, 12)
    for chosen, left in zip(support, rest, strict=True):
        assert labels[chosen].bincount().tolist() == [4, 4, 4]
        assert sorted([*chosen.tolist(), *left.tolist()]) == list(range(60))
    assert len({tuple(sorted(chosen.tolist())) for chosen in support}) == 5


def test_result_equals_torch_optimisers_one_network_at_a_time() -> None:
    flat, task = network(), clusters(noise=0.7)
    x, y = task.images, task.labels
    points = vectors(flat)
    result = transfer(
        flat,
        points,
        task,
        FewShot(shots=3, num_steps=15, head_rate=0.4, backbone_rate=0.03),
        num_episodes=4,
        seed=9,
    )
    generator = torch.Generator().manual_seed(9)
    support, rest = episodes(y, 3, 4, generator)
    draws = [torch.rand(4, *shape, generator=generator).flatten(1) for shape in ((3, 8), (3,))]
    heads = (2 * torch.cat(draws, dim=1) - 1) / math.sqrt(8)
    shown = x[support] + 0.7 * torch.randn(4, 9, 6, generator=generator)
    unseen = x[rest] + 0.7 * torch.randn(4, 51, 6, generator=generator)
    for m, point in enumerate(points):
        for e in range(4):
            module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
            module.load_state_dict(flat.unflatten(torch.cat([point[:-27], heads[e]])))
            optimiser = torch.optim.SGD(
                [
                    {"params": module[0].parameters(), "lr": 0.03},
                    {"params": module[2].parameters(), "lr": 0.4},
                ]
            )
            for _ in range(15):
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(module(shown[e]), y[support[e]])
                torch.autograd.backward(loss)
                optimiser.step()
            right = (module(unseen[e]).argmax(1) == y[rest[e]]).float().mean()
            assert result.accuracies[m, e].item() == pytest.approx(right.item(), abs=1e-6)


def test_separable_classes_are_learnt_and_shuffled_labels_are_not() -> None:
    flat = network()
    task = clusters(300, distance=8.0)
    assert transfer(flat, vectors(flat), task, num_episodes=10).mean.min() > 0.97
    shuffled = task.labels[torch.randperm(300, generator=torch.Generator().manual_seed(3))]
    chance = transfer(flat, vectors(flat), Task(task.images, shuffled), num_episodes=10)
    # Episodes share the pool of 300 labels, whose draw gives the error.
    assert (chance.mean - 1 / 3).abs().max() < 4 * math.sqrt(2 / 9 / 300)


def test_the_checkpoints_head_does_not_matter_and_its_backbone_does() -> None:
    flat, task = network(), clusters()
    points = flat.anchor.repeat(3, 1)
    points[1, -27:] = 100.0
    points[2, :-27] = 0.0
    result = transfer(flat, points, task, num_episodes=6)
    assert torch.equal(result.accuracies[0], result.accuracies[1])
    assert result.mean[2] < result.mean[0]


def test_equal_seeds_give_equal_results_for_any_company() -> None:
    flat, task = network(), clusters()
    points = vectors(flat, 9)
    together = transfer(flat, points, task, FewShot(num_steps=5), num_episodes=50)
    again = transfer(flat, points, task, FewShot(num_steps=5), num_episodes=50)
    assert torch.equal(together.accuracies, again.accuracies)
    alone = transfer(flat, points[7:8], task, FewShot(num_steps=5), num_episodes=50)
    torch.testing.assert_close(alone.accuracies[0], together.accuracies[7], rtol=0, atol=0.03)
    other = transfer(flat, points, task, FewShot(num_steps=5), num_episodes=50, seed=1)
    assert not torch.equal(together.accuracies, other.accuracies)


def test_points_given_are_not_changed() -> None:
    flat = network()
    points = vectors(flat)
    before = points.clone()
    transfer(flat, points, clusters(), FewShot(num_steps=2), num_episodes=2)
    assert torch.equal(points, before)


def test_standard_errors_match_the_scatter_of_repeated_means() -> None:
    generator = torch.Generator().manual_seed(4)
    episodes, repeats = 30, 400
    levels = torch.tensor([0.5, 0.6, 0.7])
    means, errors, offsets, paired = [], [], [], []
    for _ in range(repeats):
        shared = 0.1 * torch.randn(1, episodes, generator=generator)
        own = 0.02 * torch.randn(3, episodes, generator=generator)
        result = Transfer(levels[:, None] + shared + own)
        means.append(result.mean)
        errors.append(result.standard_error)
        offsets.append(result.mean - result.mean.mean())
        paired.append(result.paired_error)
    # A scatter from 400 repeats is known to 1/sqrt(800); its square is compared.
    for observed, claimed in ((means, errors), (offsets, paired)):
        scatter = torch.stack(observed).var(0)
        expected = torch.stack(claimed).square().mean(0)
        assert ((scatter / expected - 1).abs() < 4 * math.sqrt(2 / repeats)).all()
    assert torch.stack(paired).mean() < 0.3 * torch.stack(errors).mean()


def test_errors_say_what_does_not_fit() -> None:
    flat, task = network(), clusters()
    few = Task(task.images[task.labels < 2], task.labels[task.labels < 2])
    points = vectors(flat)
    with pytest.raises(ValueError, match="2 classes and the head 3 outputs"):
        transfer(flat, points, few)
    with pytest.raises(ValueError, match="shots=20 leave none"):
        transfer(flat, points, task, FewShot(shots=20))
    with pytest.raises(ValueError, match="num_episodes=1"):
        transfer(flat, points, task, num_episodes=1)
    with pytest.raises(RuntimeError, match="diverged at head_rate=1e"):
        transfer(flat, points, task, FewShot(head_rate=1e38), num_episodes=2)
