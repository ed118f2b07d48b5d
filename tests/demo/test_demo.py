"""`ppl-fe demo` in small: what it writes, what it replaces, what it leaves alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr

from ppl_fe import demo
from ppl_fe.cli import main
from ppl_fe.demo import run_demo
from ppl_fe.demo.digits import embedded_digits
from ppl_fe.demo.pretraining import GRID, digits_network, pretrain
from ppl_fe.demo.report import Report
from ppl_fe.demo.transfer import FewShot, transfer
from ppl_fe.networks.flat import FlatNetwork

FAST_PRETRAIN = partial(pretrain, configurations=GRID[7:9], target_loss=0.3)
FAST_TRANSFER = partial(transfer, how=FewShot(num_steps=5), num_episodes=3)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "pretrain", FAST_PRETRAIN)
    monkeypatch.setattr(demo, "transfer", FAST_TRANSFER)
    small = {"NUM_CHAINS": 2, "NUM_SAMPLES": 20, "THINNING": 1, "WARMUP": 20, "NUM_JOBS": 1}
    for name, value in small.items():
        monkeypatch.setattr(demo, name, value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        return run_demo(tmp_path_factory.mktemp("demo") / "output", progress_bar=False)


def test_everything_is_written(made: Report) -> None:
    folder = made.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "correlations.csv",
        "draws",
        "table.csv",
        "transfer.png",
        "verdict.txt",
    ]
    assert not list(folder.parent.glob("*.partial"))
    table = pd.read_csv(folder / "table.csv", index_col="checkpoint")
    assert len(table) == 4
    assert table["wbic"].is_monotonic_increasing
    for task in ("pixel noise", "new classes"):
        assert table[task].between(0, 1).all()
        assert (table[f"{task}_error"] >= 0).all()
    found = pd.read_csv(folder / "correlations.csv", index_col=["task", "criterion"])
    assert len(found) == 2 * len(demo.CRITERIA) + 1  # and that of the labels, on one task
    assert (folder / "transfer.png").read_bytes().startswith(b"\x89PNG")
    with xr.open_datatree(folder / "draws" / "0.zarr", engine="zarr") as draws:
        assert draws.posterior.sizes["chain"] == 4 * 2


def test_the_text_holds_both_verdicts_and_the_warning(made: Report) -> None:
    text = (made.folder / "verdict.txt").read_text(encoding="utf-8")
    assert text == f"{made}\n"
    for task in ("pixel noise", "new classes"):
        assert f"Correlation with accuracy on {task}" in text
        assert made.verdicts[task] in " ".join(text.split())  # wherever the lines are broken
    assert "When to trust the criterion" in text
    assert str(made.folder) in text


def test_each_row_s_accuracy_is_its_own_checkpoint_s(made: Report) -> None:
    digits = embedded_digits(seed=0)
    trained = {c.name: c for c in FAST_PRETRAIN(digits.training, seeds=(0, 1))}
    network = FlatNetwork(digits_network())
    for name in made.table.index:
        anchor = network.with_state(trained[name].state_dict).anchor
        alone = FAST_TRANSFER(network, anchor[None], digits.tasks["new classes"], seed=0)
        assert made.table["new classes"][name] == pytest.approx(alone.mean.item(), abs=2e-3)
        assert made.table["learning_rate"][name] == trained[name].configuration.learning_rate
        assert made.table["anchor_loss"][name] == pytest.approx(0.3, abs=1e-3)


def test_it_ends_with_a_choice_and_what_it_was_worth(made: Report) -> None:
    table = made.table
    chosen, without = str(table["pactran"].idxmin()), str(table["wbic"].idxmin())
    accuracy = 100 * table["new classes"]
    text = " ".join((made.folder / "verdict.txt").read_text(encoding="utf-8").split())
    assert f"pactran chooses {chosen}: {accuracy[chosen]:.1f} % in other episodes" in text
    assert f"The lowest wbic is {without}: {accuracy[without]:.1f} %" in text
    pearson = made.correlations["new classes"]["pearson"]
    assert f"its r with the accuracy is {pearson['wbic']:+.2f}" in text


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch, made: Report) -> None:
    """The long part answered from an earlier run; only the files are at stake."""
    shrink(monkeypatch)
    table = made.table[[c for c in made.table if c not in ("pixel noise", "new classes")]]
    monkeypatch.setattr(demo, "rank_checkpoints", lambda *_, **__: table.copy())


@pytest.mark.usefixtures("instant")
def test_a_second_run_replaces_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert main(["demo", "--output", str(output)]) == 0
    assert (output / "verdict.txt").read_text(encoding="utf-8") == capsys.readouterr().out
    (output / "left over").write_text("from the first run")
    assert main(["demo", "--output", str(output)]) == 0
    assert (output / "verdict.txt").is_file()
    assert not (output / "left over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


@pytest.mark.usefixtures("instant")
def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(FileExistsError, match="not an earlier demonstration"):
        run_demo(tmp_path, progress_bar=False)
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "give another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.usefixtures("instant")
def test_a_failure_in_the_middle_leaves_the_earlier_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    run_demo(output, progress_bar=False)
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}

    def diverged(*_: object, **__: object) -> None:
        raise RuntimeError("fine-tuning diverged")

    with monkeypatch.context() as broken:
        broken.setattr(demo, "transfer", diverged)
        with pytest.raises(RuntimeError, match="diverged"):
            run_demo(output, progress_bar=False)
    assert {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()} == before
    # What the failure left aside is no obstacle.
    run_demo(output, progress_bar=False)
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
