"""One chain over two ranks of `torch.distributed` is that of one process, up to rounding."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from cases.ranks import needs_ranks, on_ranks
from cases.stored_runs import stopping_after
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from ppl_fe.finetuning.objective import Counted
from ppl_fe.inference.record import recorder as draws_module
from ppl_fe.ranks import ranks

pytestmark = [needs_ranks, pytest.mark.filterwarnings("ignore:warmup_steps=:RuntimeWarning")]

N, BATCH = 60, 10
FEW: dict[str, Any] = {"num_samples": 4, "warmup_steps": 4, "thinning": 1}
LENGTH: dict[str, Any] = {"num_samples": 12, "warmup_steps": 40}
UNTIL: dict[str, Any] = {"num_samples": 50, "target_ess": 20, "max_steps": 900, "max_seconds": 200}
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = (X @ torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64) > 0.1).long()


def sum_of_squares(output: Tensor, targets: Tensor) -> object:
    return pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=targets)


of_sums: dict[str, Any] = {"likelihood": sum_of_squares, "progress_bar": False}


@pytest.fixture(autouse=True)
def _blocks_of_four_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 26)


@contextmanager
def interrupted_at(batch: int) -> Iterator[None]:
    """Ctrl-C comes in place of the batch of this number, every commit being due."""
    take = Counted.__next__

    def taken(self: Counted) -> Any:
        if self.taken == batch:
            raise KeyboardInterrupt
        return take(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counted, "__next__", taken)
        yield


def network(seed: int = 0) -> fe.FlatNetwork:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    module = nn.Sequential()
    module.body, module.head = body, nn.Linear(4, 2)
    return fe.FlatNetwork(module.double())


def estimate(data: Any = (X, Y), **changed: Any) -> xr.DataTree:
    options: dict[str, Any] = {
        "batch_size": BATCH,
        "num_chains": 2,
        "num_samples": 12,
        "warmup_steps": 40,
        "thinning": 2,
        "compile": "traced",
        "progress_bar": False,
    }
    return fe.estimate_free_energy(network(), data, **{**options, **changed}).draws


def on_a_loader() -> xr.DataTree:
    loader = DataLoader(TensorDataset(X, Y), batch_size=BATCH, shuffle=True)
    return estimate(loader, batch_size="auto")


def line(x: Tensor, y: Tensor, size: int = 5) -> None:
    w = pyro.sample("w", dist.Normal(X.new_zeros(3), 1.0).to_event(1))
    with pyro.plate("data", N, subsample_size=size):
        inputs, targets = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Bernoulli(logits=inputs @ w), obs=targets)


def sampled(length: Mapping[str, Any] = LENGTH, **settings: Any) -> xr.DataTree:
    kernel = fe.BAOAB(line, gradient="auto", **settings)
    how: dict[str, Any] = {"num_chains": 2, "compile": "traced", "progress_bar": False}
    return fe.sample(kernel, X, Y.double(), **length, **how)


def selected() -> fe.Selection:
    rule = fe.BayesTune(num_samples=5, warmup_steps=20, thinning=2)
    options: dict[str, Any] = {"batch_size": 7, "head": "head", "sparsity": 0.3}
    return fe.select_parameters(network(), (X, Y), rule=rule, progress_bar=False, **options)


def tuned(**changed: Any) -> fe.FinetuneResult:
    options: dict[str, Any] = {"num_steps": 30, "batch_size": 7, "learning_rate": 0.05}
    mask = torch.arange(26) % 3 == 0
    options |= {"mask": mask, "head": "head", "validation": (X[:21], Y[:21]), "patience": 30}
    return fe.finetune(network(), (X, Y), progress_bar=False, **{**options, **changed})


Numbers = dict[str, np.ndarray[Any, Any]]


def numbers_of(tree: xr.DataTree) -> Numbers:
    found = {**tree["posterior"].data_vars, **tree["sample_stats"].data_vars}
    return {str(name): np.asarray(values) for name, values in found.items()}


def of_training(result: fe.FinetuneResult) -> Numbers:
    return {"weights": result.weights.numpy(), "history": result.history.to_numpy()}


def of_selection() -> Numbers:
    return {"scores": selected().score.numpy()}


CALLS: dict[str, Callable[[], Numbers]] = {
    "few steps": lambda: numbers_of(estimate(step_size=1e-3, compile="eager", **FEW)),
    "fixed step": lambda: numbers_of(estimate(step_size=1e-3)),
    "fine-tuning": lambda: of_training(tuned()),
    "fine-tuning by LoRA": lambda: of_training(tuned(method="lora", mask=None)),
    "compiled": lambda: numbers_of(estimate(step_size=1e-3, compile="compiled")),
    "automatic step": lambda: numbers_of(estimate()),
    "until its targets": lambda: numbers_of(sampled(UNTIL, micro_batches=2 // ranks().total)),
    "loader": lambda: numbers_of(on_a_loader()),
    "selection": of_selection,
    # What a program's plate looks at is each rank's part: two of them are two micro-batches.
    "program": lambda: numbers_of(sampled(micro_batches=2 // ranks().total)),
}
# The others take turns of the same kinds: by hand.
MARKS: dict[str, list[pytest.MarkDecorator]] = {"few steps": [], "fine-tuning": []} | {
    name: [pytest.mark.thorough]
    for name in ("fine-tuning by LoRA", "automatic step", "selection", "program")
}


@pytest.mark.filterwarnings("ignore:not an answer yet:RuntimeWarning")  # nor need it be one
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=MARKS.get(n, [pytest.mark.slow])) for n in CALLS]
)
def test_two_ranks_are_one_process_up_to_rounding(name: str, tmp_path: Path) -> None:
    first, second = on_ranks(tmp_path, lambda _: CALLS[name]())
    for what, values in CALLS[name]().items():
        np.testing.assert_array_equal(first[what], second[what], err_msg=what)
        np.testing.assert_allclose(first[what], values, rtol=1e-6, atol=1e-9, err_msg=what)


@pytest.mark.thorough
def test_a_minibatch_of_fewer_rows_than_ranks(tmp_path: Path) -> None:
    alone = of_training(tuned(batch_size=2))
    for found in on_ranks(tmp_path, lambda _: of_training(tuned(batch_size=2)), 3):
        np.testing.assert_allclose(found["weights"], alone["weights"], rtol=1e-6)


def all_refused(found: list[Any], message: str) -> None:
    for error in found:
        assert isinstance(error, ValueError)
        assert re.search(message, str(error))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "exact gradients": (lambda: estimate(kernel=fe.MALT, batch_size=None), "2 ranks share out"),
    "all the data": (lambda: estimate(batch_size=None), "here every step takes all the data"),
    "an odd minibatch": (lambda: estimate(batch_size=7), "give a multiple of 2 below"),
    "processes": (lambda: estimate(chain_method="parallel"), "has several for all chains"),
    "a program without minibatches": (
        lambda: fe.sample(fe.BAOAB(line), X, Y.double(), size=N, progress_bar=False),
        "a plate with subsample_size",
    ),
    "a kept ranking": (
        lambda: fe.rank_checkpoints(
            {"a": network().module.state_dict()},
            network().module,
            (X, Y),
            batch_size=BATCH,
            save_to="nowhere",
        ),
        "save_to keeps a ranking that one process runs",
    ),
}


def refused(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except ValueError as error:
        return error
    return None


def test_what_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    found = on_ranks(tmp_path, lambda _: [refused(call) for call, _ in REFUSED.values()])
    for each, (_, message) in zip(zip(*found, strict=True), REFUSED.values(), strict=True):
        all_refused([*each], message)


DIFFERENT: dict[str, tuple[Callable[[int], Any], str]] = {
    "seed": (lambda rank: estimate(seed=rank), "rank 1 has seed=1, and rank 0 0: ranks"),
    "data": (lambda rank: estimate((X + rank, Y)), "rank 1 .* data="),
    "length": (lambda rank: estimate(num_samples=5 + rank), "rank 1 .* num_samples=6"),
    "network": (
        lambda rank: fe.finetune(network(rank), (X, Y), method="full", progress_bar=False),
        "rank 1 has data=.*'network'",
    ),
    "step": (lambda rank: tuned(num_steps=30 + rank), "rank 1 has num_steps=31"),
}


def test_ranks_that_were_called_differently_are_refused(tmp_path: Path) -> None:
    def each(rank: int) -> list[Exception | None]:
        return [refused(partial(call, rank)) for call, _ in DIFFERENT.values()]

    found = on_ranks(tmp_path, each)
    for errors, (_, message) in zip(zip(*found, strict=True), DIFFERENT.values(), strict=True):
        all_refused([*errors], message)


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_alike(tmp_path: Path) -> None:
    bad = X.clone()
    bad[3] = 1e308  # whose output overflows, in one rank's rows of the only batch
    linear = fe.FlatNetwork(nn.Linear(3, 2).double())
    targets = torch.zeros(N, 2, dtype=torch.float64)

    def call(rank: int) -> list[str]:
        found = []
        for run in (
            lambda: fe.finetune(linear, (bad, targets), method="full", batch_size=None, **of_sums),
            lambda: fe.select_parameters(
                linear, (bad, targets), sparsity=0.5, rule="gradient", **of_sums
            ),
        ):
            with pytest.raises(fe.DivergedError) as error:
                run()
            found.append(str(error.value))
        return found

    first, second = on_ranks(tmp_path, call)
    assert first == second
    assert "step 1" in first[0]


@pytest.mark.thorough
def test_rank_0_alone_writes_and_tells_the_others_where_to_go_on(tmp_path: Path) -> None:
    runs: dict[str, Callable[..., Any]] = {
        "draws": lambda **how: numbers_of(estimate(step_size=1e-3, **how)),
        "weights": lambda **how: of_training(tuned(**how)),
    }
    alone = {name: run() for name, run in runs.items()}

    def call(rank: int) -> list[Any]:
        own = tmp_path / f"disk of rank {rank}"
        own.mkdir()
        found = []
        for name, run in runs.items():
            stop = stopping_after(40 + 2 * 7) if name == "draws" else interrupted_at(12)
            with stop, pytest.raises(KeyboardInterrupt):
                run(save_to=own / name)
            found += [run(save_to=own / name, resume=True) for _ in range(2)]
        return [*found, sorted(file.name for file in own.iterdir())]

    first, second = on_ranks(tmp_path, call)
    assert first.pop() == ["draws", "weights"]
    assert second.pop() == []
    for one, other, name in zip(first, second, [n for n in runs for _ in "12"], strict=True):
        for what, values in alone[name].items():
            np.testing.assert_array_equal(one[what], other[what], err_msg=what)
            np.testing.assert_allclose(one[what], values, rtol=1e-6, atol=1e-9, err_msg=what)
