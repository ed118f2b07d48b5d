"""The GLUE benchmark: the whole path in small, its readers, metrics and network."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cases.scripts import run_script
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT.parent / "shared" / "data" / "text"
needs_texts = pytest.mark.skipif(
    not TEXT.is_dir(), reason="needs the texts in ../shared/data, which a clone has not"
)

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def tokenizer() -> Any:
    from glue.transformer import PACKAGE, package_folder

    folder = package_folder()
    if folder is None:
        pytest.skip(f"needs the package {PACKAGE}")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def glue(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "glue.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_rule_runs_to_its_line_and_never_twice(tmp_path: Path) -> None:
    output = tmp_path / "runs.jsonl"
    common = ["--quick", "--tasks", "cb", "--seeds", "2", "--output", str(output)]
    common += ["--masks", str(tmp_path / "masks")]
    done = glue(*common)
    assert done.returncode == 0, done.stderr
    lines = output.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    from glue.rules import METHODS

    assert len(records) == len(METHODS) * (6 + 1)  # six rates at seed 0, the chosen one at seed 1
    assert not [record["error"] for record in records if "error" in record]
    # One layer, width 16, inner 32, 20 tokens, 8 positions, 2 types.
    size = 4 * (16 * 16 + 16) + 2 * 16 * 32 + 32 + 16 + 3 * 2 * 16 + (20 + 8 + 2) * 16
    biases = 4 * 16 + 32 + 16 + 3 * 16
    for record in records:
        ranked = METHODS[record["rule"]] == "mask" and record["rule"] != "bias_only"
        expected = {"full": size, "lora": 4 * 32 + 2 * 48, "bias_only": biases}
        assert record["trained"] == (round(0.05 * size) if ranked else expected[record["rule"]])
        assert math.isfinite(record["validation"]["loss"])
    # Stopped while it wrote its last line, the command goes on where it was.
    output.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:50])
    assert glue(*common).returncode == 0
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert again[:-2] == records[:-2]
    for part in ("test", "validation"):  # same seeds, same numbers
        assert [record[part] for record in again] == [record[part] for record in records]
    from glue.results import tables

    shown = "\n".join(tables(output))
    assert shown in done.stdout + "\n"
    assert shown.count("(2)") == len(METHODS)


def test_absent_data_skip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from glue.transformer import package_folder

    script = ROOT / "benchmarks" / "glue.py"
    assert run_script(script, "--data", str(tmp_path / "none")) == 0
    reason = "no package" if package_folder() is None else "no texts under"
    assert capsys.readouterr().out.startswith(f"skipped: {reason}")


def test_metrics_are_the_usual_ones() -> None:
    from glue.metrics import measure

    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(99, 2, generator=generator), torch.arange(99) % 3 // 2
    found = measure(("accuracy", "f1", "matthews"), logits, targets)
    labels = logits.argmax(1)
    assert found["accuracy"] == pytest.approx(float((labels == targets).double().mean()))
    assert found["f1"] == pytest.approx(f1_score(targets, labels))
    assert found["matthews"] == pytest.approx(matthews_corrcoef(targets, labels))
    # A monotone but bent relation: ranks agree, values not. (0,1,4,9) on (0,1,2,3): 15/√(5·49).
    curve = measure(("pearson", "spearman"), torch.arange(4.0)[:, None] ** 2, torch.arange(4.0))
    assert curve == pytest.approx({"pearson": 15 / math.sqrt(5 * 49), "spearman": 1.0})
    flat = measure(("pearson", "spearman"), torch.ones(4, 1), torch.arange(4.0))
    assert flat == {"pearson": 0.0, "spearman": 0.0}


def test_seeds_cut_the_data_differently_and_lose_nothing() -> None:
    from glue.tasks import split

    data = {"input_ids": torch.arange(250)[:, None]}, torch.arange(250)
    cuts = [split(data, seed) for seed in (0, 0, 1)]
    for training, validation in cuts:
        assert (len(training[1]), len(validation[1])) == (225, 25)
        rows = torch.cat([training[0]["input_ids"][:, 0], validation[0]["input_ids"][:, 0]])
        assert sorted(rows.tolist()) == list(range(250))
        assert torch.equal(validation[0]["input_ids"][:, 0], validation[1])
    held_out = [validation[1].tolist() for _, validation in cuts]
    assert held_out[0] == held_out[1] != held_out[2]


def test_choices_become_rows_with_their_question() -> None:
    from glue.tasks import TASKS, encode

    tokens = tokenizer()
    table = pd.DataFrame(
        [["cause", "It rained.", "Clouds came.", "Dogs bark.", 0]],
        columns=["question", "premise", "choice1", "choice2", "label"],
    )
    tokens.enable_padding(length=32, pad_id=0)
    inputs, _ = encode(TASKS["copa"], table, tokens)
    assert inputs["input_ids"].shape == (1, 2, 32)
    texts = [tokens.decode(ids.tolist()) for ids in inputs["input_ids"][0]]
    assert texts == [
        f"it rained. what was the cause? {choice}" for choice in ("clouds came.", "dogs bark.")
    ]


@needs_texts
def test_cut_premises_of_cb_keep_their_end_and_the_hypothesis() -> None:
    from glue.tasks import TASKS, read_task

    tokens = tokenizer()
    training, test = read_task(TASKS["cb"], TEXT, tokens)
    path = TEXT / "cb" / "train.tsv.gz"
    table = pd.read_csv(path, sep="\t", quoting=3, keep_default_na=False)
    tokens.no_truncation()
    tokens.no_padding()
    assert training[0]["input_ids"].shape == (250, 64)
    assert len(test[1]) == 56
    for row in range(250):
        whole = tokens.encode(table["premise"][row], table["hypothesis"][row])
        ids = training[0]["input_ids"][row]
        second = [i for i, kind in zip(whole.ids, whole.type_ids, strict=True) if kind == 1]
        kept = ids[training[0]["token_type_ids"][row] == 1]
        assert kept[: len(second)].tolist() == second
        assert ids[0] == whole.ids[0]  # [CLS]
        first = ids[1 : 64 - len(second)] if len(whole.ids) > 64 else ids[1 : len(whole.ids)]
        premise = whole.ids[1 : -len(second)] if len(whole.ids) > 64 else whole.ids[1:]
        assert first.tolist() == premise[-len(first) :]
    torch.testing.assert_close(training[1], torch.tensor(table["label"].to_numpy()))


@needs_texts
@pytest.mark.parametrize(
    ("name", "sizes", "share"),
    [
        ("cb", (250, 56), 119 / 250),
        ("copa", (400, 100), 205 / 400),
        ("rte", (2490, 277), 1241 / 2490),
        ("mrpc", (4076, 1725), 2753 / 4076),
        ("sst2", (6920, 872), 3610 / 6920),
        ("cola", (8551, 527 + 516), 6023 / 8551),
    ],
)
def test_tasks_are_read_whole(name: str, sizes: tuple[int, int], share: float) -> None:
    from glue.tasks import TASKS, read_task

    parts = read_task(TASKS[name], TEXT, tokenizer())
    assert tuple(len(targets) for _, targets in parts) == sizes
    assert float((parts[0][1] == 1).double().mean()) == pytest.approx(share)
    assert all((inputs["input_ids"][..., 0] == 101).all() for inputs, _ in parts)


@needs_texts
def test_scores_are_centred() -> None:
    from glue.tasks import TASKS, read_task

    (_, training), (_, test) = read_task(TASKS["stsb"], TEXT, tokenizer())
    assert (len(training), len(test)) == (5749, 1500)
    assert (training.min().item(), training.max().item()) == (-2.5, 2.5)


def test_padding_and_other_choices_leave_a_score_alone() -> None:
    from glue.synthetic import SHAPE
    from glue.transformer import TextClassifier

    module = TextClassifier(1, 0, SHAPE)
    ids = torch.randint(1, 20, (3, 2, 5), generator=torch.Generator().manual_seed(0))
    types = torch.zeros_like(ids)
    types[..., 3:] = 1
    both = module(ids, types)
    assert both.shape == (3, 2)
    torch.testing.assert_close(module(ids[:, 1], types[:, 1])[:, 0], both[:, 1])
    padded = nn.functional.pad(ids, (0, 3))
    torch.testing.assert_close(module(padded, nn.functional.pad(types, (0, 3))), both)
    moved = module(ids.flip(-1), types.flip(-1))
    assert (moved - both).abs().min() > 1e-5  # the order counts, the positions are read


def test_encoder_is_the_packages() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from glue.transformer import PACKAGE, TextClassifier, package_folder

    folder = package_folder()
    if folder is None:
        pytest.skip(f"needs the package {PACKAGE}")
    module = TextClassifier(3, 0, weights=folder / "model.safetensors")
    reference = transformers.BertModel.from_pretrained(str(folder)).eval()
    ids = torch.randint(1000, 30000, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[1, 7:] = 0
    types = torch.zeros_like(ids)
    types[:, 5:7] = 1
    present = (ids != 0).float()
    with torch.no_grad():
        hidden = reference(
            input_ids=ids, token_type_ids=types, attention_mask=present
        ).last_hidden_state
        pooled = (hidden * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        torch.testing.assert_close(module(ids, types), module.head(pooled), atol=1e-5, rtol=1e-5)
