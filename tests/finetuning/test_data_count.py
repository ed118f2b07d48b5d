"""How often the data count: the automatic N̂, what is said of it, and the gradients it needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases.selection import Means, Rows
from cases.tuning import HEAD, LABELS, N, X, network
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.data.sources import TensorData
from ppl_fe.finetuning.bayestune.control_variates import ControlVariates
from ppl_fe.finetuning.bayestune.pulls import TELLING, Pulls, measure_pulls
from ppl_fe.finetuning.bayestune.scale_chains import ScaleChains
from ppl_fe.finetuning.flat_gradient import GradientParts
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Objective

QUICK: dict[str, Any] = {"num_chains": 1, "num_samples": 4, "warmup_steps": 8, "thinning": 1}
CALL = ("sparsity", "head", "batch_size")


def selected(
    net: fe.FlatNetwork, data: Any, likelihood: str = "normal", **options: Any
) -> fe.Selection:
    call = {name: options.pop(name) for name in CALL if name in options}
    rule = fe.BayesTune(**QUICK, **options)
    return fe.select_parameters(
        net, data, likelihood=likelihood, rule=rule, progress_bar=False, **call
    )


def steep(count: int, rows: int) -> tuple[fe.FlatNetwork, tuple[Tensor, Tensor], Tensor]:
    """Observations of weights that the data pull by 1, 2, ..., count, and these pulls."""
    noise = torch.randn(rows, count, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(1.0, count + 1) + noise - noise.mean(0)
    return fe.FlatNetwork(Means(count)), (torch.zeros(rows, 1), targets), targets.mean(0)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_as_many_are_pulled_by_five_beta_as_may_be_selected(share: float) -> None:
    net, data, pull = steep(20, 16)
    found = selected(net, data, sparsity=share, batch_size=None)
    data_size = found.settings["data_size"]
    assert int((data_size * pull >= 0.9999 * TELLING * 100).sum()) == round(20 * share)
    assert found.settings["num_data"] == 16
    (note,) = [note for note in found.notes if "the data count" in note]
    assert f"the data count {data_size / 16:.3g} times" in note
    assert "not a posterior at data_size=16" in note
    assert note in repr(found)


def test_the_data_count_at_least_once() -> None:
    net, (inputs, targets), _ = steep(20, 64)
    found = selected(net, (inputs, 100 * targets), sparsity=0.5)
    assert found.settings["data_size"] == 64
    assert found.settings["gradient"] == "minibatch"
    assert not [note for note in found.notes if "the data count" in note]
    nothing = selected(net, (inputs, torch.zeros_like(targets)), sparsity=0.5)
    assert nothing.settings["data_size"] == 64


def test_a_number_is_taken_as_it_is() -> None:
    net, data, _ = steep(20, 64)
    found = selected(net, data, sparsity=0.1, data_size=64.0)
    assert (found.settings["data_size"], found.settings["gradient"]) == (64.0, "minibatch")
    assert not any("data_size" in note for note in found.notes)
    noisy = selected(net, data, sparsity=0.1, data_size=640.0)
    assert noisy.settings["gradient"] == "minibatch"
    assert any("give gradient='control_variate'" in note for note in noisy.notes)
    calm = selected(net, data, sparsity=0.1, data_size=640.0, gradient="control_variate")
    assert calm.settings["gradient"] == "control_variate"
    assert not any("minibatches" in note for note in calm.notes)


def test_the_pull_at_a_group_is_its_norm() -> None:
    net = fe.FlatNetwork(Rows(3, 4))
    targets = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 3], [0.1, 0, 0, 0]]).reshape(1, -1)
    data = (torch.zeros(8, 1), targets.expand(8, -1).contiguous())
    found = selected(net, data, sparsity=0.6, groups="row", batch_size=None)  # 7 weights: two rows
    assert found.settings["data_size"] == pytest.approx(TELLING * 100 / 2.0)


# By how much the ways to halve the batches are alike where these are not equal eighths.
TOGETHER = {50: 0.15, 64: 0.0, 9: 0.15}


@pytest.mark.parametrize(("rows", "batch"), [(50, 7), (64, 64), (9, 4)])
def test_pulls_and_what_of_them_is_chance(rows: int, batch: int) -> None:
    noise = 3 * torch.randn(rows, 4000, generator=torch.Generator().manual_seed(1))
    net = fe.FlatNetwork(Means(4000))
    working = WorkingCopy(net, Objective("normal", net.device))
    source = TensorData(torch.zeros(rows, 1), 0.5 + noise, rows)
    pulls = measure_pulls(working, source, batch, 1000, 0)
    torch.testing.assert_close(pulls.gradient, -source.targets.mean(0))
    # As large as the noise of a mean of as many rows, free of the mean itself, and each its own.
    error = 3 / rows**0.5
    assert len(pulls.by_chance) == 7
    for vector in pulls.by_chance:
        assert vector.std().item() == pytest.approx(error, rel=0.05)
        assert abs(vector.mean().item()) < 4.5 * error / 4000**0.5
    together = torch.corrcoef(torch.cat([pulls.by_chance, pulls.gradient[None]]))
    assert (together - torch.eye(8)).abs().max().item() < TOGETHER[rows] + 4.5 / 4000**0.5


def test_pulls_of_one_row_and_of_a_choice_of_rows() -> None:
    net, data, pull = steep(20, 64)
    working = WorkingCopy(net, Objective("normal", net.device))
    for rows, ways in ((1, 0), (3, 1), (4, 3), (7, 3), (8, 7), (64, 7)):
        few = TensorData(data[0][:rows], data[1][:rows], rows)
        assert measure_pulls(working, few, 1, 1000, 0).by_chance.shape == (ways, 20)
    some = measure_pulls(working, TensorData(*data, 64), 4, 2, 0)  # eight rows of 64
    assert 0.1 < (some.gradient + pull).abs().mean().item() < 1
    found = selected(  # 12 steps of 4 rows
        net, data, sparsity=0.1, batch_size=4, data_size=640.0, gradient="control_variate"
    )
    assert "the gradient of all the data is that of 48 of 64 rows" in found.notes


def test_each_chain_moves_the_reference_twice_and_only_in_its_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, moves = [0], list[int]()

    def step(chains: ScaleChains) -> float:
        begun[0] += 1
        return take(chains)

    def move(reference: ControlVariates, weights: Tensor) -> None:
        moves.append(begun[0])
        return moved(reference, weights)

    take, moved = ScaleChains.step, ControlVariates.move
    monkeypatch.setattr(ScaleChains, "step", step)
    monkeypatch.setattr(ControlVariates, "move", move)
    net, data, _ = steep(20, 64)
    rule = fe.BayesTune(
        num_chains=2, num_samples=4, warmup_steps=16, thinning=1, data_size=640.0,
        gradient="control_variate",
    )  # fmt: skip
    fe.select_parameters(
        net, data, likelihood="normal", rule=rule, sparsity=0.1, batch_size=4, progress_bar=False
    )
    assert moves == [8, 10, 20 + 8, 20 + 10]  # of 16 steps before four kept ones


def test_noise_alone_is_told_from_pulls() -> None:
    noise = torch.randn(64, 2000, generator=torch.Generator().manual_seed(2))
    pulled = noise.clone()
    pulled[:, :20] += 2
    for targets, told in ((noise, True), (pulled, False)):
        found = selected(fe.FlatNetwork(Means(2000)), (torch.zeros(64, 1), targets), sparsity=0.01)
        assert any("by the choice of the rows alone" in note for note in found.notes) is told


def test_groups_pulled_by_noise_alone_are_counted_as_groups() -> None:
    noise = torch.randn(64, 400 * 5, generator=torch.Generator().manual_seed(3))
    net = fe.FlatNetwork(Rows(400, 5))
    found = selected(net, (torch.zeros(64, 1), noise), sparsity=0.05, groups="row")
    assert any(note.startswith("of the 20 groups that the data pull") for note in found.notes)


def test_a_fresh_head_is_trained_before_pulls_are_measured() -> None:
    net = network()
    found = selected(net, (X, LABELS), "categorical", head=HEAD, sparsity=0.1)
    tuned = fe.finetune(
        net, (X, LABELS), method="head", head=HEAD, num_steps=100, learning_rate=1e-2,
        batch_size=32, progress_bar=False,
    )  # fmt: skip
    vector = tuned.weights.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(vector, X), LABELS), vector)
    strongest = gradient[:25].abs().topk(2).values[-1].item()
    expected = max(N, TELLING * 100 / strongest)
    assert found.settings["data_size"] == pytest.approx(expected, rel=1e-4)


def test_control_variates_are_right_on_average_and_without_noise_at_the_reference() -> None:
    wide = fe.FlatNetwork(network().module.double())
    objective = Objective("categorical", wide.device)
    reference, working = WorkingCopy(wide, objective), WorkingCopy(wide, objective)
    inputs = X.double()
    source = TensorData(inputs, LABELS, N)

    def whole(at: WorkingCopy) -> Tensor:
        return measure_pulls(at, source, N, 100, 0, halves=False).gradient

    variates = ControlVariates(
        reference, whole(reference), lambda share: whole(reference), lambda: reference.weights
    )

    def estimates() -> Tensor:
        found = []
        for k in range(0, N, 6):
            batch = (inputs[k : k + 6], LABELS[k : k + 6])
            vector = torch.zeros_like(wide.anchor)
            variates.correct(batch, working.differentiate(batch)[1]).write_to(vector)
            found.append(vector)
        return torch.stack(found)

    torch.testing.assert_close(estimates(), whole(reference).expand(10, -1))
    working.weights.add_(0.3)
    torch.testing.assert_close(estimates().mean(0), whole(working))
    assert estimates().var(0).sum() > 0
    variates.move(working.weights)
    torch.testing.assert_close(estimates(), whole(working).expand(10, -1))
    assert variates.moved


def test_a_tensor_that_a_batch_does_not_use() -> None:
    def parts(**found: list[float]) -> GradientParts:
        places = {"a": slice(0, 2), "b": slice(2, 3), "c": slice(3, 4)}
        return GradientParts([(places[name], torch.tensor(v)) for name, v in found.items()])

    here, there = parts(a=[1.0, 2.0], b=[3.0]), parts(a=[0.5, 0.5], c=[1.0])
    mean, vector = torch.tensor([10.0, 20.0, 30.0, 40.0]), torch.zeros(4)
    here.corrected(there, mean, [slice(0, 2), slice(2, 3), slice(3, 4)]).write_to(vector)
    assert vector.tolist() == [10.5, 21.5, 33.0, 39.0]
    assert mean.tolist() == [10.0, 20.0, 30.0, 40.0]


def test_pulls_leave_the_head_out() -> None:
    pulls = Pulls(torch.tensor([1.0, -2.0, 9.0]), torch.tensor([[0.5, 0.0, 9.0]]))
    ranked = torch.tensor([True, True, False])
    sizes = pulls.outside(ranked, None)
    assert (sizes.pull.tolist(), sizes.by_chance.tolist()) == ([1.0, 2.0], [[0.5, 0.0]])
    groups = pulls.outside(ranked, torch.tensor([2, 2, 1]))
    assert groups.pull.tolist() == [pytest.approx(5**0.5)]
    assert groups.by_chance.tolist() == [[0.5]]
    assert groups.of_weights.tolist() == [pytest.approx(5**0.5)] * 2


def test_a_reference_is_gone_back_to() -> None:
    net = fe.FlatNetwork(nn.Linear(2, 1, bias=False))
    objective = Objective("normal", net.device)
    there, shares = torch.tensor([3.0, 4.0]), list[float]()

    def differentiate_all(share: float) -> Tensor:
        shares.append(share)
        return there

    first, again = (
        ControlVariates(
            WorkingCopy(net, objective), torch.zeros(2), differentiate_all, lambda: net.anchor + 1
        )
        for _ in range(2)
    )
    first.move(torch.tensor([1.0, 2.0]))
    first.fit()
    assert (first.moved, first.fitted) == (False, True)
    torch.testing.assert_close(first.working.weights, net.anchor + 1)
    first.move(torch.tensor([1.0, 2.0]))
    assert shares == [1.0, 0.5, 0.5]
    again.restore({name: value.clone() for name, value in first.state().items()})
    assert (again.moved, again.fitted) == (True, True)
    torch.testing.assert_close(again.start, torch.ones(2))
    assert again.working.weights[:2].tolist() == [1.0, 2.0]
    assert torch.equal(again.gradient, there)


@pytest.mark.thorough
def test_few_steps_find_what_moved_beside_a_stiff_direction() -> None:
    """One direction that all weights share keeps ε small: from the anchor chains found 2 of 60."""
    count, num_rows, num_moved = 400, 512, 20
    found = 0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(num_rows, count, generator=generator)
        x += torch.randn(num_rows, 1, generator=generator)
        moved = torch.zeros(count)
        moved[:num_moved] = 0.01 * (1 - 2 * (torch.arange(num_moved) % 2))
        net = fe.FlatNetwork(nn.Linear(count, 1, bias=False))
        noise = 0.001 * torch.randn(num_rows, generator=generator)
        selection = fe.select_parameters(
            net,
            (x, net(net.anchor, x)[:, 0] + x @ moved + noise),
            likelihood="normal",
            rule=fe.BayesTune(num_chains=1, warmup_steps=200, num_samples=150, thinning=1),
            sparsity=num_moved / count,
            batch_size=16,
            progress_bar=False,
            seed=seed,
        )
        found += int(selection.mask[:num_moved].sum())
        assert any(
            "start at the network fine-tuned for 350 steps" in one for one in selection.notes
        )
    assert found >= 12  # chance is 3


def test_chains_that_come_in_time_start_at_the_pretrained_weights() -> None:
    net, data, _ = steep(20, 64)
    found = selected(net, data, sparsity=0.1, batch_size=16, gradient="control_variate")
    assert found.settings["gradient"] == "control_variate"
    assert not any("fine-tuned" in note for note in found.notes)
