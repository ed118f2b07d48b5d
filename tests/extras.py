"""What each extra is for, once, in an environment that has nothing else: `make extras`.

python tests/extras.py netcdf
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ppl_fe as fe

ROOT = Path(__file__).parent.parent
X = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
LABELS = (X[:, 0] > 0).long()


def estimate() -> fe.FreeEnergyEstimate:
    network = fe.FlatNetwork(nn.Linear(4, 2))
    return fe.estimate_free_energy(network, (X, LABELS), num_samples=50, progress_bar=False)


def nothing(folder: Path) -> None:
    """No extra: estimates, checkpoints, stage 1 and 2, the shell; what lacks an extra names it."""
    print(estimate())
    module = nn.Linear(4, 2)
    torch.save(module.state_dict(), folder / "a.pt")
    table = fe.rank_checkpoints([folder / "a.pt"], module, (X, LABELS), progress_bar=False)
    assert table["error"].tolist() == [""]
    network = fe.FlatNetwork(module)
    selection = fe.select_parameters(network, (X, LABELS), sparsity=0.2, progress_bar=False)
    tuned = fe.finetune(network, (X, LABELS), mask=selection.mask, progress_bar=False)
    fe.save_delta(tuned, folder / "task.safetensors")
    fe.apply_delta(module, folder / "task.safetensors")
    shell = [str(Path(sys.executable).with_name("ppl-fe")), "--help"]
    assert (
        "which checkpoint" in subprocess.run(shell, capture_output=True, text=True).stdout.lower()
    )
    lacking: dict[str, Callable[[], object]] = {
        "plots": selection.plot,
        "netcdf": lambda: estimate().to_netcdf(folder / "draws.nc"),
    }
    for extra, call in lacking.items():
        said = refusal(call)
        assert f"ppl-fe[{extra}]" in said, f"{extra}: {said}"


def refusal(call: Callable[[], object]) -> str:
    """Give what a call says that lacks a package."""
    try:
        call()
    except ImportError as error:
        return str(error)
    return "it ran, so that this environment has more than it should"


def plots(folder: Path) -> None:
    """Draw an estimate's losses and ranks into a file."""
    draws = estimate().draws
    axes = [fe.plots.plot_loss_traces(draws), fe.plots.plot_ranks(draws)[0]]
    for each, name in zip(axes, ("losses", "ranks"), strict=True):
        figure: Any = each.figure
        figure.savefig(folder / f"{name}.png")
    assert (folder / "ranks.png").stat().st_size > 10_000
    import arviz_plots

    print("arviz_plots", arviz_plots.__version__)


def netcdf(folder: Path) -> None:
    """Write an estimate and read it again."""
    made = estimate()
    made.to_netcdf(folder / "draws.nc")
    assert str(fe.diagnose(folder / "draws.nc")) == str(fe.diagnose(made))


def demo(folder: Path) -> None:
    """Run the demonstration, pictures included."""
    from ppl_fe.demo import run_demo

    print(run_demo(folder / "demo", progress_bar=False))
    assert list((folder / "demo").glob("*.png"))


def distributed(folder: Path) -> None:
    """Rank checkpoints on a Dask scheduler and worker of this machine, and on two processes."""
    from dask.distributed import Client

    states = {f"{k}": nn.Linear(4, 2).state_dict() for k in range(2)}
    given: Any = (states, nn.Linear(4, 2), (X, LABELS))
    with Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        executor = client.get_executor()
        one = fe.rank_checkpoints(*given, executor=executor, save_to=folder / "kept")
    two = fe.rank_checkpoints(*given, n_jobs=2, until="mixed", progress_bar=False)
    assert one["wbic"].tolist() == two["wbic"].tolist()
    assert two["error"].tolist() == ["", ""]


def lora(folder: Path) -> None:
    """Train adapters, and let PEFT read them."""
    from peft import PeftModel

    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    tuned = fe.finetune(
        fe.FlatNetwork(module), (X, LABELS), method="lora", head="2", progress_bar=False
    )
    fe.save_adapter(tuned, folder / "adapter")
    read = PeftModel.from_pretrained(module, str(folder / "adapter")).eval()
    torch.testing.assert_close(read(X), tuned.predict(X))


def huggingface(folder: Path) -> None:
    """Train a selection of a small BERT inside Trainer."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20, num_labels=2,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    ids = torch.randint(0, 50, (32, 8), generator=torch.Generator().manual_seed(1))
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    network = fe.FlatNetwork(model)
    selection = fe.select_parameters(
        network, data, rule="magnitude", sparsity=0.02, head="classifier", progress_bar=False
    )
    masked = fe.MaskedTraining(selection)
    args = transformers.TrainingArguments(
        output_dir=str(folder / "run"), max_steps=3, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    rows = [{name: tensor[i] for name, tensor in data.items()} for i in range(len(ids))]
    transformers.Trainer(model, args, train_dataset=rows, callbacks=[masked]).train()
    fe.save_delta(masked.tuned(network), folder / "task.safetensors")


def notebooks(folder: Path) -> None:
    """Run a notebook that draws a picture, and keep its output."""
    import nbformat
    from nbclient import NotebookClient

    cell = "import ppl_fe as fe, torch, matplotlib.pyplot as plt; plt.plot([1, 2]); print('drawn')"
    made: Any = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    place = {"metadata": {"path": str(folder)}}  # in the repository it would import the source
    NotebookClient(made, timeout=300, kernel_name="python3", resources=place).execute()
    assert any("drawn" in output.get("text", "") for output in made.cells[0].outputs)


def docs(folder: Path) -> None:
    """Build the site, of which build/installed is a part."""
    config = ["--config-file", str(ROOT / "docs" / "mkdocs.yml"), "--site-dir", str(folder / "s")]
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", *config], check=True
    )
    assert (folder / "s" / "index.html").exists()


EXTRAS = {each.__name__: each for each in (
    nothing, plots, netcdf, demo, distributed, lora, huggingface, notebooks, docs
)}  # fmt: skip


def main() -> None:
    """Use the extra of this name."""
    name = sys.argv[1]
    found = find_spec("ppl_fe")
    assert found is not None
    assert found.origin is not None
    assert Path(sys.prefix) in Path(found.origin).parents, f"not installed, but {found.origin}"
    with tempfile.TemporaryDirectory() as folder:
        EXTRAS[name](Path(folder))
    print(f"[{name}] works")


if __name__ == "__main__":
    main()
