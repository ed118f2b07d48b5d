"""The benchmarks of few labels: right networks, right signs, a line a part and none twice."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cases.scripts import run_script

import ppl_fe as fe

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def test_a_criterion_is_held_against_the_accuracy_by_its_own_sign() -> None:
    import few_labels

    accuracy = pd.Series([0.7, 0.8, 0.9])
    low, high = [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]
    columns = {"free_energy": low, "expected_loss": high}
    columns |= {f"{name}_error": [0.1] * 3 for name in ("free_energy", "expected_loss")}
    record = {
        "part": "sampled",
        "episode": 0,
        "seconds": 1.0,
        "passes": dict.fromkeys(columns, 1.0),
        "columns": columns | {"r_hat": [1.0, 1.02, 1.01]},
    }
    table = few_labels.judged([record], lambda _: accuracy)
    assert table["r"].str.slice(0, 5).tolist() == ["+1.00", "-1.00"]
    assert table["regret, %"].str.slice(0, 5).tolist() == ["0.00 ", "20.00"]
    assert table["R-hat"].tolist() == ["1.02", "1.02"]


def test_the_rule_goes_narrower_until_networks_are_told_apart() -> None:
    """In the first episode at γ = 10, in the second nowhere; the third has not been run there."""
    import few_labels

    def record(episode: int, gamma: float, mean: float, spread: float) -> dict[str, Any]:
        columns = {"free_energy": [mean - spread, mean, mean + spread]}
        columns["free_energy_error"] = [0.3] * 3
        part = f"sampled at {gamma:g}"
        return {"episode": episode, "part": part, "localization": gamma, "columns": columns}

    records = [record(k, 1.0, 5.0, 0.1) for k in range(3)]
    records += [record(k, 10.0, 6.0, spread) for k, spread in ((0, 2.0), (1, 0.5))]
    found = few_labels.chosen_among([*records, {"episode": 0, "part": "features"}])
    assert [(one["episode"], one["part"][11:], one["localization"]) for one in found] == [
        (0, "γ by evidence of 1, 10", 1.0),
        (0, "γ by rule of 1, 10", 10.0),
        (1, "γ by evidence of 1, 10", 1.0),
        (1, "γ by rule of 1, 10", 10.0),
    ]


@pytest.mark.slow
def test_a_line_a_part_and_none_twice(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    call = ["--quick", "--episodes", "0", "--parts", "features", "--output", str(results)]
    for _ in range(2):
        assert run_script(ROOT / "benchmarks" / "few_labels.py", *call) == 0
    (line,) = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(line["columns"]["logme"]) == 24


def test_the_recurrent_network_is_keras_s() -> None:
    import mhc

    torch.manual_seed(0)
    network = fe.FlatNetwork(mhc.Binder())
    assert network.num_parameters == 26_241
    w = 0.3 * torch.randn(26_241)
    short, long = mhc.encode(["SIINFEKL"]), mhc.encode(["SIINFEKLAAAAAAA"])
    parts = {name: value.double().numpy() for name, value in network.unflatten(w).items()}
    h = c = np.zeros(64)
    for letter in short[0, :8].double().numpy():
        gates = letter @ parts["kernel"] + h @ parts["recurrent"] + parts["bias"]
        i, f, g, o = gates.reshape(4, 64)
        i, f, o = (np.clip(0.2 * one + 0.5, 0, 1) for one in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
    hidden = np.tanh(parts["dense.weight"] @ h + parts["dense.bias"])
    logit = parts["output.weight"] @ hidden + parts["output.bias"]
    found = network(w, short).item()
    assert found == pytest.approx(float(1 / (1 + np.exp(-logit[0]))), rel=1e-4)
    # What pads a peptide says nothing, what is there does.
    assert network(w, short[:, :8]).item() == pytest.approx(found, rel=1e-6)
    assert network(w, long).item() != found


def package(folder: Path) -> Path:
    """A package of three alleles, whose networks are random."""
    h5py = pytest.importorskip("h5py")
    data, saves = folder / "data/production/mhcI", folder / "saves/production"
    data.mkdir(parents=True)
    saves.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (data / "curated_training_data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["mhc", "peptide", "IC50(nM)"])
        for name in ("HLA-A*01:01", "HLA-A*02:17", "HLA-B*07:02"):
            for _ in range(140):
                peptide = "".join(rng.choice(list("ACDEFGHIKL"), 9))
                writer.writerow([name, peptide, float(rng.uniform(1, 50_000))])
    shapes: dict[str, tuple[int, ...]] = {
        "lstm_1/lstm_1/kernel:0": (21, 256),
        "lstm_1/lstm_1/recurrent_kernel:0": (64, 256),
    }
    shapes |= {"lstm_1/lstm_1/bias:0": (256,), "dense_1/dense_1/kernel:0": (64, 64)}
    shapes |= {"dense_1/dense_1/bias:0": (64,), "dense_2/dense_2/kernel:0": (64, 1)}
    shapes |= {"dense_2/dense_2/bias:0": (1,)}
    for name in ("HLA-A01:01", "HLA-A02:17", "HLA-B07:02"):
        with h5py.File(saves / f"{name}_BA.h5", "w") as file:
            for key, shape in shapes.items():
                file[key] = 0.3 * rng.standard_normal(shape)
    return folder


@pytest.mark.thorough
def test_targets_are_those_of_even_hashes(tmp_path: Path) -> None:
    import mhc

    folder, results = package(tmp_path / "package"), tmp_path / "results.jsonl"
    even = {name for name in mhc.networks(folder) if mhc.is_target(name)}
    found = mhc.targets(folder, 3, 2, 25)
    assert set(found) == even
    assert "HLA-A02:17" in even
    assert set(mhc.targets(folder, 3, 2, 25, check=True)) == set(mhc.networks(folder)) - even
    call: list[Any] = ["--package", folder, "--candidates", 2, "--labels", 25, "--quick"]
    call += ["--parts", "features", "--targets", 1, "--output", results]
    for _ in range(2):
        assert run_script(ROOT / "benchmarks" / "mhc.py", *map(str, call)) == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["part"] for line in lines] == ["truth", "features"]
    assert len(lines[0]["columns"]["finetuned"]) == 2
