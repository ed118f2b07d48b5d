"""The CIFAR-FS experiment runs from end to end on random images, and its parts do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cases.scripts import run_script
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "cifar_fs.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--full"]], ids=["small", "full"])
def test_smoke(form: list[str], tmp_path: Path) -> None:
    output, work = tmp_path / "report.txt", tmp_path / "work"
    done = run("--smoke", *form, "--output", str(output), "--work", str(work))
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(work / "checkpoints.csv", index_col="checkpoint")
    assert len(rows) == 4
    # Matched: every network stands at the target, not merely below it.
    np.testing.assert_allclose(rows["training_loss"], 0.5, rtol=1e-3)
    outcomes = ["noise", "fresh", "full", "few"]
    criteria = ["wbic", "held_out", "validation_loss", "geometric_complexity", "neural_collapse"]
    assert np.isfinite(rows[outcomes + criteria]).all(axis=None)
    assert rows["wbic"].nunique() == 4
    report = output.read_text()
    assert report.count("\n- ") == len(outcomes)  # a verdict each
    assert "-0.820" in report
    assert "-0.890" in report
    assert report in done.stdout


def test_absent_data_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(BENCHMARKS / "cifar_fs.py", "--data", str(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("skipped: no CIFAR-FS under")


def test_patch_convolution_is_a_convolution() -> None:
    from cifar.networks import PatchConvolution

    torch.manual_seed(0)
    patch, reference = PatchConvolution(3, 5, 2), nn.Conv2d(3, 5, 2, 2)
    with torch.no_grad():
        weight = patch.linear.weight.view(5, 2, 2, 3)  # rows, columns, channels of a patch
        reference.weight.copy_(weight.permute(0, 3, 1, 2))
        reference.bias.copy_(patch.linear.bias.normal_())  # type: ignore[union-attr]
    images = torch.randn(4, 3, 8, 8)
    expected = reference(images)
    torch.testing.assert_close(patch(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), expected)


def test_episodes_test_on_images_they_did_not_show() -> None:
    from cifar.finetuning import draw_episodes

    numbers = torch.arange(60.0)[:, None, None, None].expand(60, 3, 2, 2)
    labels = torch.arange(6).repeat_interleave(10)
    episodes = draw_episodes((numbers, labels), ways=4, shots=3, tests=5, num_episodes=20, seed=0)
    shown, unseen = episodes.shown[:, :, 0, 0, 0].long(), episodes.unseen[:, :, 0, 0, 0].long()
    for few, rest in zip(shown, unseen, strict=True):
        assert len({*few.tolist(), *rest.tolist()}) == 4 * (3 + 5)
        # One class an episode's label, the same in both halves.
        for way in range(4):
            classes = {*labels[few[3 * way : 3 * way + 3]].tolist()}
            assert classes == {*labels[rest[5 * way : 5 * way + 5]].tolist()}
            assert len(classes) == 1
    assert {tuple(row) for row in labels[shown].tolist()} != {tuple(labels[shown[0]].tolist())}


def test_splits_share_no_image() -> None:
    from cifar.data import Split, random_images

    images = random_images(Split(3, 4, 5, 6, 7), seed=0)
    parts = (images.training, images.held_out, images.fresh)
    assert [len(part[0]) for part in parts] == [12, 15, 18]
    every = torch.cat([part[0].flatten(1) for part in parts])
    assert len({tuple(image) for image in every.tolist()}) == 12 + 15 + 18
    mean = images.training[0].mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)


def test_unreached_target_is_reported_not_dropped() -> None:
    from cifar.pretraining import pretrain

    from ppl_fe.demo.pretraining import Configuration
    from ppl_fe.networks.flat import FlatNetwork

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))

    inputs = torch.cat([torch.zeros(8, 4), torch.ones(8, 4)])
    targets = torch.arange(16) // 8
    fast, late = (
        pretrain(
            build,
            FlatNetwork(build()),
            (inputs, targets),
            Configuration(rate, 4, 0.0),
            2,
            target_loss=0.1,
            max_epochs=100,
            seed=0,
        )
        for rate in (0.5, 1e-6)
    )
    torch.testing.assert_close(fast.losses, torch.full((2,), 0.1), rtol=1e-4, atol=0)
    assert late.losses.isnan().all()
    assert late.epochs.isnan().all()


def test_reliability_is_the_share_that_is_not_error() -> None:
    from cifar.agreement import reliability

    generator = np.random.default_rng(0)
    truth, noise = generator.normal(0, 3, 4000), generator.normal(0, 4, 4000)
    share = reliability(pd.Series(truth + noise), pd.Series(np.full(4000, 4.0)))
    # 9/25; the spread of a variance over 4000 values is 2.2 %.
    assert abs(share - 0.36) < 4 * 0.64 * 0.0224


def test_clustered_intervals_are_wide_where_seeds_agree() -> None:
    from cifar.agreement import beyond, clustered_correlations

    from ppl_fe.free_energy.correlation import correlations

    # Twenty copies of five configurations: as checkpoints 100 points, in truth five.
    generator = np.random.default_rng(0)
    x, z = generator.normal(size=(2, 5))
    y = x + generator.normal(size=5)
    rows = np.repeat(np.stack([x, y, z]), 20, axis=1) + 1e-6 * generator.normal(size=(3, 100))
    table = pd.DataFrame(rows.T, columns=["criterion", "accuracy", "control"])
    table["configuration"] = np.repeat(list("abcde"), 20)
    clustered = clustered_correlations(table, ["criterion"], "accuracy").loc["criterion"]
    plain = correlations(table, ["criterion"], "accuracy", method=["pearson"]).loc["criterion"]
    assert clustered["pearson"] == plain["pearson"]
    widths = [row["pearson_high"] - row["pearson_low"] for row in (clustered, plain)]
    assert widths[0] > 2 * widths[1]
    # The partial correlation is that of the residuals.
    design = np.column_stack([np.ones(100), rows[2]])
    left = rows[:2].T - design @ np.linalg.lstsq(design, rows[:2].T, rcond=None)[0]
    expected = np.corrcoef(left.T)[0, 1]
    found = beyond(table, "criterion", "control", "accuracy")["pearson"]
    assert abs(found - expected) < 1e-9
