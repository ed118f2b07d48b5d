"""The site's reference names every public function and class, and its menu every page.

Whether it builds without a warning is `make docs`'s own business (`--strict`).
"""

from __future__ import annotations

import importlib
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.bert import DATA, INPUTS, ROWS, bert

import ppl_fe as fe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = DOCS / "pages"
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
READ_IN_THE_REPOSITORY = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *PAGES.rglob("*.md")]
NOT_CODE = {"__version__", "models", "plots"}  # modules have a page


def documented() -> list[str]:
    texts = [page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("reference/*.md"))]
    return [name for text in texts for name in DIRECTIVE.findall(text)]


@pytest.mark.parametrize("package", ["ppl_fe", "ppl_fe.models", "ppl_fe.diagnostics"])
def test_every_public_name_has_its_place(package: str) -> None:
    public = {
        name
        for name in importlib.import_module(package).__all__
        if name not in NOT_CODE and not name.endswith("Posterior")  # made by a function, not called
    }
    assert public <= {name.rpartition(".")[2] for name in documented()}


def test_nothing_is_named_that_is_not_there() -> None:
    for path in documented():
        try:
            importlib.import_module(path)
        except ImportError:
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(module), name), path


def test_no_name_has_two_places() -> None:
    assert len(documented()) == len(set(documented()))


@pytest.mark.parametrize(
    "page", READ_IN_THE_REPOSITORY, ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_finding_can_be_run_and_is_listed() -> None:
    scripts = list((ROOT / "findings").glob("*.sh"))
    listed = (ROOT / "findings/README.md").read_text(encoding="utf-8")
    assert scripts
    assert all(os.access(script, os.X_OK) and f"({script.name})" in listed for script in scripts)


def test_every_page_is_in_the_menu() -> None:
    menu = (DOCS / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES.rglob("*.md"):
        assert f": {page.relative_to(PAGES).as_posix()}\n" in menu, page.name


def test_every_claim_about_features_has_its_test() -> None:
    text = (PAGES / "features.md").read_text(encoding="utf-8")
    named = dict(re.findall(r'<a id="(t-[\w-]+)"></a>[^`]*`([^`]+)`', text))
    assert set(re.findall(r"\(#(t-[\w-]+)\)", text)) == set(named)
    for place in named.values():
        file, _, name = place.partition("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), place
    own = [row.split("|")[2] for row in text.splitlines() if row.startswith("| ")]
    claims = [cell for cell in own if cell.strip() not in ("here", "")]
    assert all("](#t-" in cell or "no: " in cell for cell in claims), claims
    assert "by hand" not in text


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")  # of so short a run
@pytest.mark.parametrize("page", ["getting_started", "from_lightning", "chains_do_not_mix"])
def test_the_code_of_a_page_runs(
    page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for file in (PAGES / "data").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    for epoch in (1, 2):
        layers = [torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)]
        tensors = torch.nn.Sequential(*layers).state_dict()
        state = {f"model.layers.{name}": tensor for name, tensor in tensors.items()}
        torch.save({"state_dict": state, "epoch": epoch}, f"epoch={epoch}.ckpt")
    quick = {"num_samples": 20, "warmup_steps": 20, "progress_bar": False}
    for name in ("sample", "rank_checkpoints", "estimate_free_energy"):
        more = {"compile": "eager"} if name == "sample" else {}
        monkeypatch.setattr(fe, name, partial(getattr(fe, name), **quick, **more))
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, found)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of so short a run
def test_the_code_for_users_of_pymc_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    quick = partial(fe.sample, num_samples=20, warmup_steps=20, compile="eager", progress_bar=False)
    monkeypatch.setattr(fe, "sample", quick)
    text = (PAGES / "from_pymc.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    before = plt.get_backend()
    plt.switch_backend("agg")
    try:
        for block in blocks:
            if "arviz" in block and az_major() > 0:
                continue
            exec(block, found)
    finally:
        plt.close("all")
        plt.switch_backend(before)
    assert list(fe.summary(found["draws"], ["theta"]).index) == [f"theta[{k}]" for k in "ABCDEFGH"]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.filterwarnings("ignore:.pin_memory. argument")
def test_the_code_for_users_of_peft_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bert().get_submodule("bert").bfloat16().save_pretrained("base")  # type: ignore[operator]
    text = (PAGES / "from_peft.md").read_text(encoding="utf-8")
    found: dict[str, Any] = {
        "base": "base",
        "train": DATA,
        "held_out": DATA,
        "inputs": INPUTS,
        "rows": ROWS,
    }
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, found)
    given, expected = found["model"], found["logits"]
    assert {"sparse", "low_rank", "task.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert found["tuned"].metrics.keys() == {"accuracy"}
    torch.testing.assert_close(found["found"].eval()(**INPUTS).logits, expected, rtol=0, atol=1e-6)
    assert given.training
    assert expected.shape == (32, 3)


def az_major() -> int:
    az = pytest.importorskip("arviz")
    return int(az.__version__.split(".")[0])
