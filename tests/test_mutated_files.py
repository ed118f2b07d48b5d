"""Damaged files of every kind: one clear error of ours, or what was written; nothing is changed.

A thousand in `make test-all`, three of each kind in `make test-thorough`. What a format without
checksums cannot tell is left out: other numbers among the weights of a safetensors file.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
import xarray as xr
from cases import deltas, tuning
from cases.checkpoints import as_shards, expected, module, prefixed, state
from cases.mutations import mutate_bytes, mutate_folder, mutate_header
from cases.selection import select
from cases.stored_runs import crashing_after, files, run, stopping_after
from safetensors.torch import save_file
from torch import Tensor

import ppl_fe as fe

PER_KIND, FEW = 100, 3
Load = Callable[[Path], bool]
SECRET = 77.0  # of a file outside, to which damaged names may lead


class Kind(NamedTuple):
    """A kind of file.

    write: into a folder; gives what is to be loaded. mutate: damages that, and says how. loads:
    say whether they gave what was written. errors: the only ones that are clear.
    """

    write: Callable[[Path], Path]
    mutate: Callable[[Path, Random], str]
    loads: tuple[Load, ...]
    errors: tuple[type[Exception], ...]


def loads_weights(path: Path) -> bool:
    network = fe.FlatNetwork(module())
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    try:
        return torch.equal(fe.load_checkpoint(path, network), expected())
    finally:
        after = network.module.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def applies_delta(path: Path) -> bool:
    net = deltas.base()
    before = deltas.contents(net)
    try:
        applied = fe.apply_delta(net, path)
    except ValueError:
        assert deltas.same(net, before)
        raise
    right = deltas.same(net, deltas.contents(deltas.tuned(1)[0]))
    applied.remove()
    assert deltas.same(net, before)
    return right


@cache
def made() -> fe.Selection:
    return select(tuning.network(), (tuning.X, tuning.LABELS), head=tuning.HEAD, sparsity=0.2)


def selection(folder: Path) -> Path:
    made().save(folder / "selection.safetensors")
    return folder / "selection.safetensors"


def loads_selection(path: Path) -> bool:
    found = fe.load_selection(path, tuning.network())
    scores = zip(found.score.tolist(), made().score.tolist(), strict=True)
    return torch.equal(found.mask, made().mask) and all(repr(a) == repr(b) for a, b in scores)


def draws(path: Path | None, **changed: Any) -> xr.DataTree:
    drawn: xr.DataTree = run(path, **{"num_samples": 16, "thinning": 2, **changed})
    return drawn


@cache
def whole() -> xr.DataTree:
    return draws(None)


def is_whole(tree: xr.DataTree) -> bool:
    return all(
        tree[group].to_dataset().drop_attrs().identical(whole()[group].to_dataset().drop_attrs())
        for group in whole().children
    )


def reads_run(path: Path) -> bool:
    return is_whole(draws(path / "run.zarr", resume=True))


def diagnoses_run(path: Path) -> bool:
    return fe.diagnose(path / "run.zarr").table.equals(fe.diagnose(whole()).table)


def goes_on(path: Path) -> bool:
    before = files(path)
    try:
        return is_whole(draws(path / "run.zarr", resume=True))
    except ValueError:
        assert files(path) == before
        raise


def stopped(path: Path) -> Path:
    with stopping_after(3 + 2 * 13), pytest.warns(RuntimeWarning, match="13 of 16"):
        draws(path / "run.zarr")
    return path


def killed(path: Path) -> Path:
    with crashing_after(3 + 2 * 13):
        draws(path / "run.zarr")
    return path


def complete(path: Path) -> Path:
    draws(path / "run.zarr")
    return path


class Code:
    """Leaves a mark where an unsafe reader runs it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def mutate_content(file: Path, random: Random) -> str:
    """Damage a file of torch, or write into it what no state dict should hold."""
    if random.random() < 0.6:
        return mutate_bytes(file, random)
    content = torch.load(file, weights_only=True)
    held = content.get("state_dict", content)
    name = random.choice(sorted(held))
    value: Tensor = held[name]
    endless: dict[str, Any] = {}
    endless["model"] = endless
    odd: dict[str, Any] = {
        "dropped": None,
        "turned": value.reshape(1, *value.shape),
        "not a number": value * float("nan"),
        "whole numbers": (value + 0.5).to(torch.int64),
        "complex": value * 1j,
        "sparse": value.reshape(-1, 1).float().to_sparse(),
        "nowhere": value.to("meta"),
        "in double precision": value.double(),
        "a list": [value],
        "code": Code(file.parent / "ran"),
        "a number": 3,
    }
    how = random.choice([*odd, "renamed", "numbered", "endless", "a list of all", "code beside"])
    if how in odd:
        held[name] = odd[how]
    elif how == "renamed":
        held[f"{name}x"] = held.pop(name)
    elif how == "numbered":
        held[7] = held.pop(name)
    elif how == "code beside":
        content["more"] = Code(file.parent / "ran")
    else:
        content = endless if how == "endless" else [held]
    torch.save(content, file)
    return f"{how}: {name}"


def weights(folder: Path, name: str, content: Any) -> Path:
    save = save_file if name.endswith("safetensors") else torch.save
    save(content, folder / name)
    return folder / name


LIGHTNING = {"epoch": 3, "pytorch-lightning_version": "2", "optimizer_states": [{"state": {}}]}
OF_WEIGHTS: Any = ((loads_weights,), (fe.CheckpointError, FileNotFoundError))
OF_RUNS: Any = (ValueError, FileNotFoundError)
KINDS = {
    "safetensors": Kind(
        lambda folder: weights(folder, "a.safetensors", state()), mutate_header, *OF_WEIGHTS
    ),
    "torch": Kind(lambda folder: weights(folder, "a.pt", state()), mutate_content, *OF_WEIGHTS),
    "Lightning": Kind(
        lambda folder: weights(
            folder, "a.ckpt", {"state_dict": prefixed("model.", state()), **LIGHTNING}
        ),
        mutate_content,
        *OF_WEIGHTS,
    ),
    "folder of shards": Kind(
        lambda folder: as_shards(folder, save_file, "model"),
        partial(mutate_folder, mutate=mutate_header),
        *OF_WEIGHTS,
    ),
    "folder of bin shards": Kind(
        lambda folder: as_shards(folder, torch.save, "pytorch_model"), mutate_folder, *OF_WEIGHTS
    ),
    "delta": Kind(deltas.saved, mutate_bytes, (applies_delta,), (fe.DeltaError, FileNotFoundError)),
    "selection": Kind(
        selection,
        mutate_bytes,
        (loads_selection,),
        (fe.SelectionError, FileNotFoundError),
    ),
    "complete run": Kind(complete, mutate_folder, (reads_run, diagnoses_run), OF_RUNS),
    "stopped run": Kind(stopped, mutate_folder, (goes_on,), OF_RUNS),
    "killed run": Kind(killed, mutate_folder, (goes_on,), OF_RUNS),
}


opened: list[str] = []  # files outside, by an audit hook: such hooks cannot be taken off


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and "outside" in str(arguments[0]):
        opened.append(str(arguments[0]))
    if event in ("os.system", "subprocess.Popen", "os.exec"):
        opened.append(f"{event} {arguments}")


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(range(FEW), marks=pytest.mark.thorough),
        pytest.param(range(FEW, PER_KIND), marks=pytest.mark.slow),
    ],
    ids=["few", "many"],
)
@pytest.mark.parametrize("name", KINDS)
def test_mutated_files(name: str, numbers: range, tmp_path: Path) -> None:
    kind, original, outside = KINDS[name], tmp_path / "original", tmp_path / "outside"
    for folder in (original, outside):
        folder.mkdir()
    path = kind.write(original).relative_to(original)
    for secret in ("secret", "secret.safetensors"):
        save_file(
            {key: torch.full_like(value, SECRET) for key, value in state().items()},
            outside / secret,
        )
    if not opened:
        sys.addaudithook(_listen)
    wrong = []
    for number in numbers:
        random, folder = Random(f"{name} {number}"), tmp_path / str(number)
        shutil.copytree(original, folder)
        how = kind.mutate(folder / path, random)
        opened[:] = ["listening"]
        for load in kind.loads:
            wrong += _judge(kind, load, folder, path, f"{number}: {how}: {load.__name__}")
        wrong += [f"{number}: {how}: opened {file}" for file in opened[1:]]
        shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)


def _judge(kind: Kind, load: Load, folder: Path, path: Path, what: str) -> list[str]:
    """Say what is wrong with how a damaged file was met."""
    before = files(folder)
    try:
        right = load(folder / path)
    except Exception as error:
        if type(error) not in kind.errors:
            return [f"{what}: {type(error).__name__}: {error}"]
        if str(folder) not in str(error) and not str(error).startswith("draws h"):
            return [f"{what}: does not name the file: {error}"]
        if files(folder) != before:
            return [f"{what}: changed the files"]
    else:
        if not right:
            return [f"{what}: took something else"]
    return [f"{what}: ran code"] if (folder / "ran").exists() else []
