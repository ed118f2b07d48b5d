"""Every picture is seen: in a notebook's cell, by `plt.show`, and in the file of a script."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from nbclient import NotebookClient

import ppl_fe as fe

PREPARED = textwrap.dedent(
    """
    import warnings
    import numpy as np, pandas as pd, pyro, torch
    import pyro.distributions as dist
    import ppl_fe as fe
    from ppl_fe.plots import *

    warnings.simplefilter("ignore")  # of runs as short as these


    def model():
        pyro.sample("w", dist.Normal(0.0, torch.tensor([0.1, 0.2])).to_event(1))


    def run(step_size):
        kernel = fe.SGLD(model, step_size=step_size)
        return fe.sample(kernel, num_samples=60, compile="eager", progress_bar=False)


    runs = [run(step_size) for step_size in ("auto", 0.005, 0.01)]
    draws = runs[0]
    beta = np.linspace(0, 1, 5) ** 5
    ladder = pd.DataFrame({"inverse_temperature": beta, "energy": 9 / (1 + beta)})
    ladder = ladder.assign(energy_mcse=0.1, variance=9 / (1 + beta) ** 2)
    ranking = pd.DataFrame({"wbic": [9.0, 7.5], "wbic_mcse": 0.2, "pets": [0.8, 0.9]})
    selected = pd.DataFrame({"selected": [3, 1], "share": [0.3, 0.5]}, index=["w", "b"])
    selection = fe.Selection(
        "magnitude", torch.rand(9), torch.arange(9) < 2, {"w": slice(0, 6), "b": slice(6, 9)}
    )
    """
)
CALLS = {
    "plot_ladder": "plot_ladder(ladder)",
    "plot_loss_traces": "plot_loss_traces(draws)",
    "plot_r_hat_by_layer": "plot_r_hat_by_layer(draws)",
    "plot_ranked_scales": "plot_ranked_scales(np.geomspace(1, 1e-3, 500), num_selected=5)",
    "plot_ranks": "plot_ranks(draws)",
    "plot_selected_by_layer": "plot_selected_by_layer(selected)",
    "plot_temperature_against_step": "plot_temperature_against_step(runs)",
    "plot_temperature_by_layer": "plot_temperature_by_layer(draws)",
    "plot_transfer": "plot_transfer(ranking, 'pets')",
    "Selection.plot": "selection.plot()",
}


def test_these_are_all() -> None:
    assert {name for name in CALLS if "." not in name} == set(fe.plots.__all__)


def test_a_new_figure_is_the_current_one_and_given_axes_make_none() -> None:
    import pandas as pd

    table = pd.DataFrame({"selected": [3, 1], "share": [0.3, 0.5]}, index=["w", "b"])
    axes = fe.plots.plot_selected_by_layer(table)
    assert plt.gcf() is axes.figure
    plt.close("all")
    fe.plots.plot_selected_by_layer(table, axes=Figure().subplots())
    assert not plt.get_fignums()


@pytest.mark.thorough
def test_in_a_fresh_kernel_a_cell_shows_one_picture() -> None:
    # As the value of a cell; by plt.show(), which leaves the cell no second one; and saved.
    endings = ["", "\nplt.show()", "\nplt.savefig(io.BytesIO())"]
    cells = [f"{call}{ending}" for call in CALLS.values() for ending in endings]
    prepared = f"{PREPARED}\nimport io\nimport matplotlib.pyplot as plt"
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in (prepared, *cells)]
    )
    client = NotebookClient(notebook, timeout=240, kernel_name="python3")
    client.execute(env={name: text for name, text in os.environ.items() if name != "MPLBACKEND"})
    for cell in notebook.cells[1:]:
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(pictures) == 1, cell.source


@pytest.mark.thorough
def test_a_script_writes_files_that_are_not_blank(tmp_path: Path) -> None:
    script = f"{PREPARED}\nimport matplotlib.pyplot as plt\n" + "".join(
        f"{call}\nplt.savefig('{name}.png')\nplt.close()\n" for name, call in CALLS.items()
    )
    script += "assert not plt.get_fignums()\n"
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for name in CALLS:
        picture = imread(tmp_path / f"{name}.png")
        assert len({tuple(pixel) for row in picture[::4] for pixel in row[::4].tolist()}) > 3, name
