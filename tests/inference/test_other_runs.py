"""A stored run is gone on with, or read, only by the call that began it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from cases.stored_runs import files, stopping_after
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.run import one_run
from ppl_fe.inference.run.identity import fingerprint, refuse_other_run
from ppl_fe.inference.run_plan import Target

N = 40
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(21))
Y = X @ torch.tensor([1.0, -0.5]) + 0.1
OFFSET = torch.zeros(N)  # what a program closes over


def model(
    x: Tensor,
    y: Tensor,
    size: int | None = 4,
    *,
    sd: float = 1.0,
    noise: Tensor | None = None,
    offset: Tensor = OFFSET,
    power: int = 1,
) -> None:
    w = pyro.sample("w", dist.Normal(0.0, sd).expand([2]).to_event(1))
    pyro.deterministic("size", w.square().sum() ** power)
    with pyro.plate("data", N, subsample_size=size) as rows:
        inputs, targets = x[rows], y[rows]
        scale = 0.5 if noise is None else noise
        pyro.sample("y", dist.Normal(inputs @ w + offset[rows], scale), obs=targets)


def on_batches(x: Tensor, y: Tensor, sd: Any = 0.5) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", N, subsample_size=len(y)):
        pyro.sample("y", dist.Normal(x @ w, sd), obs=y)


def changed(tensor: Tensor, place: int) -> Tensor:
    other = tensor.clone()
    other[place] += 1.0
    return other


def program(**fixed: Any) -> Callable[..., None]:
    """The model with some of its constants fixed, as another script may define it."""

    def fixed_model(x: Tensor, y: Tensor, **more: Any) -> None:
        model(x, y, **fixed, **more)

    return fixed_model


def sample(path: Path | None, made: Mapping[str, Any] | None = None, **more: Any) -> xr.DataTree:
    """Run the model, or another program on other data."""
    given = {"model": model, "args": (X, Y), "kwargs": {"noise": torch.tensor(0.5)}, **(made or {})}
    options: dict[str, Any] = {"num_samples": 8, "warmup_steps": 2, "num_chains": 2}
    return fe.sample(
        fe.SGLD(given["model"], step_size=0.003),
        *given["args"],
        compile="eager",
        progress_bar=False,
        save_to=path,
        **{**options, **more},
        **given["kwargs"],
    )


def loader(x: Tensor = X, y: Tensor = Y) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)


def on(data: DataLoader[Any]) -> dict[str, Any]:
    return {"model": on_batches, "args": (data,), "kwargs": {}}


NOISE = {"noise": torch.tensor(0.5)}
PLAIN: dict[str, Any] = {}
# What the run was begun with, what it is gone on with, and how the message ends.
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one label": (PLAIN, {"args": (X, changed(Y, 17))}, r"with other data \(argument 1\)"),
    "the rows in another order": (
        PLAIN,
        {"args": (X.flip(0), Y.flip(0))},
        r"with other data \(argument 0, argument 1\)",
    ),
    "another dtype": (PLAIN, {"args": (X, Y.double())}, r"with other data \(argument 1\)"),
    "a keyword's tensor": (
        PLAIN,
        {"kwargs": {"noise": torch.tensor(0.6)}},
        r"with other data \(argument 'noise'\)",
    ),
    "a keyword less": (PLAIN, {"kwargs": {}}, r"with other data \(argument 'noise'\)"),
    "a keyword's number": (
        PLAIN,
        {"kwargs": {**NOISE, "sd": 1.1}},
        "by another program .*log-probability of site 'w' is",
    ),
    "an argument's number": (
        PLAIN,
        {"args": (X, Y, 5)},
        r"with {'minibatches_of': {'data': \[4, 40\]}}, not with .*5, 40",
    ),
    "a constant of the program": (
        PLAIN,
        {"model": program(sd=1.01)},
        "by another program .*log-probability of site 'w' is",
    ),
    "data that it closes over": (
        {"model": program(offset=OFFSET)},
        {"model": program(offset=OFFSET + 0.1)},
        "by another program .*log-probability of site 'y' is",
    ),
    "what it computes of its sites": (
        PLAIN,
        {"model": program(power=2)},
        "by another program .* mean of site 'size' is",
    ),
    "a loader's data": (
        on(loader()),
        on(loader(X, changed(Y, N - 1))),
        r"with other data \(argument 1\)",
    ),
    "a keyword's tensor beside a loader": (
        {**on(loader()), "kwargs": {"sd": torch.tensor(0.5)}},
        {**on(loader()), "kwargs": {"sd": torch.tensor(0.6)}},
        r"with other data \(argument 'sd'\)",
    ),
    "a loader's length": (
        on(loader()),
        on(loader(torch.cat([X, X[1:]]), torch.cat([Y, Y[1:]]))),
        r"with {'minibatches_of': .*40\]}}, not with .*79\]}} and with other data",
    ),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Each run once, complete or stopped, by what it was begun with."""
    folder, made = tmp_path_factory.mktemp("runs"), dict[tuple[str, bool], Path]()

    def path_of(name: str, complete: bool) -> Path:
        first = OTHERS[name][0]
        kind = str([id(part) for part in first.values()])
        path = folder / f"{len(made)}.zarr"
        if (kind, complete) not in made:
            if complete:
                sample(path, first)
            else:
                with stopping_after(2 + 5), pytest.warns(RuntimeWarning, match="5 of 8"):
                    sample(path, first)
            made[kind, complete] = path
        return made[kind, complete]

    return path_of


# A complete and a stopped run are compared by the same lines, and so is one kind of difference.
FAST = {("one label", False), ("a constant of the program", True), ("a keyword's tensor", True)}
BOTH = [(name, complete) for name in OTHERS for complete in (True, False)]


@pytest.mark.parametrize(
    ("name", "complete"),
    [case if case in FAST else pytest.param(*case, marks=pytest.mark.thorough) for case in BOTH],
)
def test_another_run_is_refused_and_left_as_it_was(
    name: str, complete: bool, begun: Callable[[str, bool], Path]
) -> None:
    path = begun(name, complete)
    before = files(path.parent)
    with pytest.raises(ValueError, match=rf"resume=True: .* was begun {OTHERS[name][2]}.*repeat"):
        sample(path, OTHERS[name][1], resume=True)
    assert files(path.parent) == before


@pytest.mark.parametrize(
    "name",
    [
        "one label",
        pytest.param("data that it closes over", marks=pytest.mark.thorough),
        pytest.param("a loader's data", marks=pytest.mark.thorough),
    ],
)
def test_the_same_call_of_a_later_day_goes_on(name: str, tmp_path: Path) -> None:
    """With other objects of the same content, and functions defined anew."""
    first, path = OTHERS[name][0], tmp_path / "run.zarr"
    with stopping_after(2 + 5), pytest.warns(RuntimeWarning, match="5 of 8"):
        sample(path, first)
    again = dict(first)
    if "closes" in name:
        again["model"] = program(offset=OFFSET.clone())
    elif "loader" in name:
        again["args"] = (loader(X.clone(), Y.clone()),)
    else:
        again["args"] = (X.clone(), Y.clone())
    resumed, whole = sample(path, again, resume=True), sample(None, first)
    xr.testing.assert_identical(resumed["posterior"].to_dataset().drop_attrs(), drawn(whole))
    xr.testing.assert_identical(drawn(sample(path, again, resume=True)), drawn(whole))


def drawn(tree: xr.DataTree) -> xr.Dataset:
    return tree["posterior"].to_dataset().drop_attrs()


def test_starts_given_by_hand_are_part_of_the_call(tmp_path: Path) -> None:
    path, start = tmp_path / "run.zarr", {"w": torch.zeros(2, 2)}
    sample(path, initial_params=start)
    sample(path, initial_params=start, resume=True)
    for other in ({"w": torch.ones(2, 2)}, None):
        with pytest.raises(ValueError, match=r"with other data \(initial_params\)"):
            sample(path, initial_params=other, resume=True)


class Augmented(Dataset[Any]):
    """Rows with noise of its own, other in each pass."""

    def __init__(self, labels: Tensor) -> None:
        self.labels, self.generator = labels, torch.Generator().manual_seed(1)

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return X[row] + 0.01 * torch.randn(2, generator=self.generator), self.labels[row]


@pytest.mark.thorough
def test_of_data_that_are_augmented_what_stays_the_same_counts(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    sample(path, on(DataLoader(Augmented(Y), batch_size=5)))
    sample(path, on(DataLoader(Augmented(Y), batch_size=5)), resume=True)
    with pytest.raises(ValueError, match=r"with other data \(argument 1\)"):
        sample(path, on(DataLoader(Augmented(changed(Y, 0)), batch_size=5)), resume=True)


@pytest.mark.thorough
def test_a_program_that_fails_at_a_point_is_judged_by_the_others(tmp_path: Path) -> None:
    def factor(x: Tensor, y: Tensor, **more: Any) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        matrix = torch.eye(2) - 3 * torch.outer(w, w)  # not positive a little way out
        pyro.factor(
            "f", torch.linalg.cholesky(matrix).diagonal().log().sum() - 50 * w.square().sum()
        )

    path, given = tmp_path / "run.zarr", {"model": factor}
    quick: dict[str, Any] = {"initial_params": {"w": torch.zeros(2, 2)}, "num_samples": 3}
    options = {**quick, "warmup_steps": 0}
    draws = sample(path, given, **options)
    xr.testing.assert_identical(drawn(sample(path, given, resume=True, **options)), drawn(draws))


def test_nothing_is_compared_where_nothing_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_run, "fingerprint", None)  # it reads all the data
    sample(None)


def test_programs_are_told_apart_by_what_they_come_to() -> None:
    at = {"x": [[-1.0, 0.5, 0.5], [-2.0, 0.1, 0.3]]}

    def compared(other: dict[str, list[list[float]]]) -> None:
        facts = {"data": {}, "precision": 1e-3}
        refuse_other_run(Path("run"), {**facts, "program": at}, {**facts, "program": other})

    compared({"x": [[-1.0001, 0.5, 0.5], [-2.0, 0.1, 0.3]]})
    with pytest.raises(ValueError, match=r"the mean of site 'x' is 0.1, and was 0.2"):
        compared({"x": [[-1.0, 0.5, 0.5], [-2.0, 0.2, 0.3]]})
    with pytest.raises(ValueError, match=r"another program .site 'x' is in one of the two only"):
        compared({"x": at["x"][:1]})
    with pytest.raises(ValueError, match="site 'y' is in one of the two only"):
        compared({**at, "y": [[0.0]]})


def test_a_program_that_fails_at_a_point_has_no_number_there() -> None:
    def narrow() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if float(x) != 0:  # anywhere but at the origin, where it is tried
            raise ValueError("no factor")

    assert fingerprint(Target(Density(narrow)))["program"] == {}
