"""Fine-tuning and stage 1, cut short and gone on with, are the uninterrupted runs, bit for bit."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cases.killed import killed_at
from cases.selection import means, observed_weights, select
from cases.stored_runs import CrashError, files
from cases.tuning import HEAD, LABELS, X, network, tune
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from ppl_fe.data.sources import TensorData
from ppl_fe.files import safetensors_io
from ppl_fe.files.kept_run import KeptRun
from ppl_fe.finetuning.bayestune.data_count import HEAD_STEPS
from ppl_fe.finetuning.bayestune.scale_chains import ScaleChains
from ppl_fe.finetuning.going_on import facts_of
from ppl_fe.finetuning.objective import Objective
from ppl_fe.finetuning.train.finetune_result import FinetuneResult
from ppl_fe.finetuning.train.training_loop import Training
from ppl_fe.inference.run.interrupts import Interrupts

Call = Callable[..., Any]


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Ctrl-C is pressed in this step."""
    check, calls = Interrupts.check, 0

    def pressed(self: Interrupts) -> None:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise KeyboardInterrupt
        check(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interrupts, "check", pressed)
        yield


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, LABELS), batch_size=8, shuffle=True)


VALIDATION = (X[:20] + 0.1, LABELS[:20])
TUNINGS: dict[str, dict[str, Any]] = {
    "mask": {},
    "validation": {"validation": VALIDATION, "evaluate_every": 3, "weight_decay": 0.01},
    "patience": {
        "method": "full",
        "learning_rate": 0.8,
        "validation": VALIDATION,
        "evaluate_every": 1,
        "patience": 4,
        "num_steps": 60,
    },
    "sgd": {"optimizer": "sgd", "schedule": "constant", "method": "full"},
    "head": {"method": "head", "head": HEAD},
    "lora": {"method": "lora", "head": HEAD},
    "loader": {"data": loader},
}


def tuned(name: str, **more: Any) -> FinetuneResult:
    if name == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    given = dict(TUNINGS[name])
    data = given.pop("data", lambda: (X, LABELS))()
    return tune(data=data, **{**given, **more})


def assert_same_tuning(one: FinetuneResult, other: FinetuneResult) -> None:
    assert torch.equal(one.weights, other.weights)
    pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
    assert one.step == other.step
    for layer, (a, b) in one.adapters.items():
        assert torch.equal(a, other.adapters[layer][0])
        assert torch.equal(b, other.adapters[layer][1])


def named(those: Any, *fast: str) -> pytest.MarkDecorator:
    slow = pytest.mark.thorough
    return pytest.mark.parametrize(
        "name", [name if name in fast else pytest.param(name, marks=slow) for name in those]
    )


@named(TUNINGS, "mask", "validation", "patience")
def test_fine_tuning_stopped_twice_and_gone_on_with(name: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "run", tuned(name)
    for steps, resume in ((3, False), (4, True)):
        with (
            stopped_after(steps),
            pytest.raises(KeyboardInterrupt, match=r"after \d+ of \d+ steps, .* resume=True goes"),
        ):
            tuned(name, save_to=path, resume=resume)
    assert_same_tuning(tuned(name, save_to=path, resume=True), whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_update", None)
        assert_same_tuning(tuned(name, save_to=path, resume=True), whole)
    assert list(tmp_path.iterdir()) == [path]


def test_early_stopping_happens_in_these_runs() -> None:
    found = tuned("patience")
    assert 0 < found.step < len(found.history) - 1 < 60


def test_a_training_that_diverges_is_kept_as_such(tmp_path: Path) -> None:
    path = tmp_path / "run"
    wrong: dict[str, Any] = {"learning_rate": 1e38, "optimizer": "sgd", "method": "full"}
    messages = []
    for resume in (False, True):
        with pytest.raises(fe.DivergedError, match=r"lower learning_rate") as error:
            tune(save_to=path, resume=resume, **wrong)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_crash_costs_what_came_after_the_last_commit(tmp_path: Path) -> None:
    path, update, calls = tmp_path / "run", Training._update, 0

    def crashing(self: Training, batches: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise CrashError
        return update(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_update", crashing)
        with pytest.raises(CrashError):
            tuned("validation", save_to=path)
    kept = KeptRun(path, "ppl-fe fine-tuning 1", resume=True)
    kept.close()
    assert kept.stopped is not None
    assert kept.stopped[1]["step"] == 9
    assert_same_tuning(tuned("validation", save_to=path, resume=True), tuned("validation"))


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "a setting": ({"learning_rate": 0.01}, r"with {'learning_rate': 0.05}, not with .*0.01}"),
    "the mask": ({"mask": torch.arange(37) < 3}, r"with other data \(mask\)"),
    "a label": ({"data": (X, 1 - LABELS)}, r"with other data \(data targets\)"),
    "the likelihood": (
        {
            "likelihood": lambda output, targets: fe.models.likelihoods.categorical(
                2 * output, targets
            )
        },
        r"'likelihood': 'categorical'",
    ),
    "the network": ({"net": "other"}, r"with other data \(network\)"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_another_call_is_refused_and_named(name: str, tmp_path: Path) -> None:
    path, (changed, message) = tmp_path / "run", dict(CHANGED)[name]
    with stopped_after(5), pytest.raises(KeyboardInterrupt):
        tune(save_to=path)
    before = files(tmp_path)
    changed = dict(changed)
    if "net" in changed:
        other = network()
        other.anchor = other.anchor + 1e-3
        changed["net"] = other
    with pytest.raises(ValueError, match=rf"resume=True: .*run was begun .*{message}"):
        tune(save_to=path, resume=True, **changed)
    assert files(tmp_path) == before


def test_what_cannot_be_begun_or_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(ValueError, match="resume=True goes on with the run at save_to"):
        tune(resume=True)
    with pytest.raises(FileNotFoundError, match=r"there is no run .*leave resume out"):
        tune(save_to=path, resume=True)
    tune(save_to=path)
    with pytest.raises(FileExistsError, match="already holds another run"):
        tune(save_to=path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"resume=True: .*run is damaged.*begin a new run"):
        tune(save_to=path, resume=True)
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_call_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    held = KeptRun(path, "any 1")
    with pytest.raises(BlockingIOError, match="is being written by process"):
        tune(save_to=path)
    held.close()


def test_a_full_disk_says_what_is_kept(tmp_path: Path) -> None:
    path, calls, write = tmp_path / "run", 0, safetensors_io._write

    def full(*what: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_io, "_write", full)
        with pytest.raises(OSError, match=r"no room .*; the first 5 of 20 steps are kept: make ro"):
            tuned("mask", save_to=path)
    assert_same_tuning(tuned("mask", save_to=path, resume=True), tuned("mask"))


@pytest.mark.slow
def test_fine_tuning_killed_at_each_operation(tmp_path: Path) -> None:
    whole = tuned("validation")
    for operation in range(400):
        folder = tmp_path / str(operation)
        folder.mkdir()
        path = folder / "run"
        if not killed_at(operation, folder, partial(tuned, "validation", save_to=path)):
            break
        resumed = tuned("validation", save_to=path, resume=path.exists())
        assert_same_tuning(resumed, whole)
        assert list(folder.iterdir()) == [path]
    assert operation > 50


SELECTIONS: dict[str, dict[str, Any]] = {
    "drawn": {"rule": "bayestune", "num_chains": 2},
    "expected": {"num_chains": 2, "count_top": True},
    "one chain without errors": {"rule": "bayestune", "num_chains": 1, "diagnose": False},
    "groups": {"rule": "bayestune", "groups": "layer", "num_chains": 2},
}


def selected(name: str, **more: Any) -> Any:
    net, data = means(4)
    length = {"num_samples": 20, "warmup_steps": 50, "thinning": 2}
    given = {"likelihood": observed_weights, **length, **SELECTIONS[name], **more}
    return select(net, data, **given)


def on_rows(**more: Any) -> Any:
    """Minibatches, control variates, a fresh head."""
    x = torch.cat([X, -X])
    labels = torch.cat([LABELS, 1 - LABELS])
    rule = fe.BayesTune(
        num_chains=2, num_samples=6, warmup_steps=12, thinning=2, gradient="control_variate"
    )
    return fe.select_parameters(
        network(), (x, labels), rule=rule, sparsity=0.1, head=HEAD, progress_bar=False, **more
    )


def assert_same_selection(one: Any, other: Any) -> None:
    for name in ("score", "scale_mean", "scale_sd", "r_hat", "mcse", "probability_in_top", "mask"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None)
        if isinstance(first, Tensor):
            np.testing.assert_array_equal(first, second)
    assert one.notes == other.notes
    assert one.settings == other.settings


def go_on_with(run: Call, path: Path, stops: Sequence[int], *, read: bool = True) -> None:
    whole = run()
    for number, steps in enumerate(stops):
        with (
            stopped_after(steps),
            pytest.raises(KeyboardInterrupt, match=r"stage 1 was stopped after \d+ of \d+ steps"),
        ):
            run(save_to=path, resume=number > 0)
    assert_same_selection(run(save_to=path, resume=True), whole)
    if not read:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScaleChains, "step", None)
        assert_same_selection(run(save_to=path, resume=True), whole)
    assert list(path.parent.iterdir()) == [path]


@named(SELECTIONS)
def test_stage_1_stopped_and_gone_on_with(name: str, tmp_path: Path) -> None:
    # In the warm-up, among the draws of the first chain, at the start of the second.
    go_on_with(partial(selected, name), tmp_path / "run", (20, 47, 23)[: 2 if "one" in name else 3])


def test_stage_1_stopped_among_its_draws(tmp_path: Path) -> None:
    go_on_with(partial(selected, "drawn"), tmp_path / "run", (130,), read=False)


@pytest.mark.thorough
def test_control_variates_and_a_head_are_gone_on_with(tmp_path: Path) -> None:
    # The head is trained before the chains, in each call.
    stops = [HEAD_STEPS + steps for steps in (4, 11, 9, 15)]
    go_on_with(on_rows, tmp_path / "run", stops)


def on_stiff_rows(**more: Any) -> Any:
    """Inputs that share a direction keep steps short, so that chains start fine-tuned."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 20, generator=generator) + 30 * torch.randn(64, 1, generator=generator)
    net = fe.FlatNetwork(nn.Linear(20, 1, bias=False))
    y = net(net.anchor, x)[:, 0] + 0.01 * x[:, 0]
    rule = fe.BayesTune(
        num_chains=2, num_samples=6, warmup_steps=12, thinning=2, gradient="control_variate"
    )
    return fe.select_parameters(
        net, (x, y), likelihood="normal", rule=rule, sparsity=0.1, batch_size=16,
        progress_bar=False, **more,
    )  # fmt: skip


@pytest.mark.thorough
def test_a_start_that_was_fine_tuned_is_gone_on_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()

    def run(**more: Any) -> Any:
        torch.set_rng_state(state)  # the same network
        return on_stiff_rows(**more)

    assert any("fine-tuned for 24 steps" in note for note in run().notes)
    go_on_with(run, tmp_path / "run", [24 + 4, 11, 9, 15])
    said = "stage 1 was stopped before the first step of its chains"
    with stopped_after(7), pytest.raises(KeyboardInterrupt, match=said):
        run(save_to=tmp_path / "other")


def test_other_selections_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with stopped_after(5), pytest.raises(KeyboardInterrupt):
        selected("drawn", save_to=path)
    with pytest.raises(ValueError, match=r"'num_chains': '2'}, not with {'num_chains': '3'}"):
        selected("drawn", save_to=path, resume=True, num_chains=3)
    with pytest.raises(
        ValueError, match=r"save_to keeps the chains of BayesTune.* rule='movement'"
    ):
        select(*means(4), "movement", likelihood=observed_weights, save_to=path)


def test_ctrl_c_of_a_run_that_is_not_kept_says_so() -> None:
    with (
        stopped_after(3),
        pytest.raises(KeyboardInterrupt, match=r"stopped after .*nothing is kept; with save_to="),
    ):
        tune()


def test_a_likelihood_that_fails_on_the_data_has_no_number() -> None:
    """Whoever checks the data says why; what identifies the call does not."""
    source = fe.data.as_data((X, LABELS))
    assert isinstance(source, TensorData)
    good, bad = (Objective(likelihood, network().device) for likelihood in ("categorical", broken))
    facts = [facts_of(network(), one, {"data": source}, {}) for one in (good, bad)]
    with torch.no_grad():
        rows = torch.arange(8) * (len(X) - 1) // 7  # at equal distances, from the first to the last
        outputs = network().module(X[rows])
    expected = -torch.nn.functional.cross_entropy(outputs, LABELS[rows])
    assert facts[0]["program"]["y"][0][0] == pytest.approx(float(expected), rel=1e-5)
    assert facts[1]["program"] == {}
    assert facts[0]["data"] == facts[1]["data"]


def broken(output: Tensor, targets: Tensor) -> object:
    raise ValueError("not for these")
