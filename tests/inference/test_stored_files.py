"""What lies in the folder of a run is what its run wrote, or an error names what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
import zarr
from cases.stored_runs import CrashError, crashing_after, files, run, stopping_after

import ppl_fe as fe
from ppl_fe.cli import main
from ppl_fe.inference.record import recorder as draws_module
from ppl_fe.inference.record.seal import PLACE
from ppl_fe.inference.record.zarr_store import Store

# Too short to be believed, which is not what is asked here.
pytestmark = pytest.mark.filterwarnings("ignore:warmup_steps=:RuntimeWarning")

SITES = ["z", "sum", "b", "a"]


def model() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.deterministic("sum", z.sum())
    pyro.sample("b", dist.LogNormal(0.0, 0.5))
    pyro.sample("a", dist.Normal(0.0, 1.0))


def stored(path: Path | None, **changed: Any) -> xr.DataTree:
    options = {"num_samples": 20, "thinning": 2, **changed}
    tree: xr.DataTree = run(path, fe.SGLD(model, step_size=0.1), **options)
    return tree


def values(tree: xr.DataTree, group: str = "posterior") -> xr.Dataset:
    return tree[group].to_dataset().drop_attrs()


@pytest.fixture(autouse=True)
def _chunks_of_four_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 5)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "run.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 5)
        stored(path)
    return path


@pytest.fixture
def path(kept: Path, tmp_path: Path) -> Path:
    shutil.copytree(kept, tmp_path / "run.zarr")
    return tmp_path / "run.zarr"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other_number(file: Path) -> None:
    """A valid file that says something else."""
    said = json.loads(file.read_text())
    said["attributes"]["temperature"] = 0.5
    file.write_text(json.dumps(said))


def shorter(file: Path) -> None:
    said = json.loads(file.read_text())
    said["shape"][-1] -= 1
    file.write_text(json.dumps(said))


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a chunk is gone": ("posterior/z/c/0/2/0", Path.unlink),
    "a bit of a chunk": ("posterior/z/c/0/2/0", flip),
    "half a chunk": ("sample_stats/lp/c/0/1", halve),
    "an empty chunk": ("posterior/a/c/0/0", lambda file: file.write_bytes(b"")),
    "another chunk": (
        "posterior/b/c/0/1",
        lambda file: shutil.copy(file.with_name("2"), file),
    ),
    "a chunk more": (
        "posterior/b/c/0/9",
        lambda file: shutil.copy(file.with_name("2"), file),
    ),
    "another temperature": ("zarr.json", other_number),
    "another temperature beside the draws": ("posterior/zarr.json", other_number),
    "fewer coordinates": ("posterior/z/zarr.json", shorter),
    "no metadata of an array": ("posterior/z/zarr.json", Path.unlink),
    "no metadata of a group": ("posterior/zarr.json", Path.unlink),
    "metadata that are no JSON": ("sample_stats/zarr.json", halve),
    "root metadata that are no JSON": ("zarr.json", halve),
    "the moments": ("moments/z/c/0/0", flip),
    "the chains' numbers": ("posterior/chain/c/0", flip),
    "a site that is gone": ("posterior/a", shutil.rmtree),
    "a group that is gone": ("moments", shutil.rmtree),
    "a site more": (
        "posterior/c",
        lambda folder: shutil.copytree(folder.with_name("a"), folder),
    ),
    "the checksums": (PLACE, flip),
    "half the checksums": (PLACE, halve),
}


def readers(path: Path) -> dict[str, Callable[[], Any]]:
    return {
        "resume": lambda: stored(path, resume=True),
        "diagnose": lambda: fe.diagnose(path),
        "summary": lambda: fe.summary(str(path)),
    }


# One of a kind: the others go the same way.
FAST = ("a chunk is gone", "another temperature", "a site more", "the checksums")
FAST_TOO = (*FAST, "root metadata that are no JSON")


def kinds(those: Collection[str], fast: Collection[str] = FAST) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "kind",
        [
            kind if kind in fast else pytest.param(kind, marks=pytest.mark.thorough)
            for kind in those
        ],
    )


@kinds(DAMAGE, FAST_TOO)
def test_damage_is_one_error_that_names_the_file(kind: str, path: Path) -> None:
    name, damage = DAMAGE[kind]
    damage(path / name)
    before = files(path)
    for read in readers(path).values():
        with pytest.raises(ValueError, match=r"run\.zarr is damaged: .*") as error:
            read()
        assert name in str(error.value)
        assert files(path) == before


def test_the_shell_names_it_too(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(path / "posterior/z/c/0/2/0")
    assert main(["diagnose", str(path)]) == 2
    assert "posterior/z/c/0/2/0 is not what the run wrote" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [flip, halve])
def test_other_readers_do_not_take_a_changed_chunk(
    damage: Callable[[Path], None], path: Path
) -> None:
    damage(path / "posterior/z/c/0/2/0")
    with xr.open_datatree(path, engine="zarr") as tree, pytest.raises(ValueError, match="checksum"):
        tree.load()


@pytest.mark.thorough
def test_nor_read_a_missing_one_as_draws(path: Path) -> None:
    (path / "posterior/z/c/0/2/0").unlink()
    with xr.open_datatree(path, engine="zarr") as tree:
        z = values(tree.load())["z"]
    assert bool(z[:, 8:12].isnull().all())
    assert not z[:, [*range(8), *range(12, 20)]].isnull().any()


def test_a_whole_folder_is_read_in_the_order_of_the_sites(path: Path) -> None:
    again, whole = stored(path, resume=True), stored(None)
    assert list(again["posterior"].data_vars) == SITES == list(whole["posterior"].data_vars)
    assert list(again.children) == list(whole.children)
    assert list(again["moments"].data_vars) == ["z", "b", "a"]
    rows = list(fe.summary(path).index)
    assert rows == ["z[0]", "z[1]", "z[2]", "sum", "b", "a"] == list(fe.summary(whole).index)
    for group in whole.children:
        xr.testing.assert_identical(values(again, group), values(whole, group))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning")
def test_groups_and_notes_of_others_are_left_alone(path: Path) -> None:
    before = fe.diagnose(path).table
    draws = xr.open_datatree(path, engine="zarr")["posterior"].to_dataset().load()
    draws[["a"]].drop_encoding().to_zarr(path, group="mine", mode="a")
    zarr.consolidate_metadata(path)
    (path / "posterior" / ".DS_Store").write_bytes(b"of a file manager")
    assert fe.diagnose(path).table.equals(before)
    assert "mine" in stored(path, resume=True).children


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning")
def test_draws_saved_again_by_their_reader_are_read(path: Path, tmp_path: Path) -> None:
    """They have no seal: other draws than the run's are no damage."""
    with xr.open_datatree(path, engine="zarr") as tree:
        later = tree.load().isel(draw=slice(4, None))
    later.to_zarr(tmp_path / "later.zarr")
    again, once = (fe.diagnose(draws).table for draws in (tmp_path / "later.zarr", later))
    assert again[["check", "value"]].equals(once[["check", "value"]])


@pytest.mark.parametrize("chunks", [None, pytest.param({}, marks=pytest.mark.thorough)])
def test_draws_that_are_read_as_they_are_needed(chunks: dict[str, int] | None, path: Path) -> None:
    if chunks is not None:
        pytest.importorskip("dask", reason="dask is not installed")

    def diagnosed(draws: Any) -> Any:
        return fe.diagnose(draws).table[["check", "value"]]

    for read in (fe.summary, diagnosed):
        with xr.open_datatree(path, engine="zarr", chunks=chunks) as lazy:
            assert read(lazy).sort_index().equals(read(path).sort_index())


STOP = 3 + 2 * 14  # after fourteen draws, of which twelve are on the way


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that Ctrl-C stopped, and one that a crash did."""
    folder = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 5)
        with stopping_after(STOP), pytest.warns(RuntimeWarning, match="14 of 20 draws"):
            stored(folder / "stopped" / "run.zarr")
        with crashing_after(STOP):
            stored(folder / "killed" / "run.zarr")
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    (to / "run.zarr.lock").unlink(missing_ok=True)
    return to / "run.zarr"


@pytest.fixture
def stopped(ended: Path, tmp_path: Path) -> Path:
    return copied(ended / "stopped", tmp_path)


@pytest.fixture
def killed(ended: Path, tmp_path: Path) -> Path:
    return copied(ended / "killed", tmp_path)


@pytest.mark.parametrize("steps", [pytest.param(0, marks=pytest.mark.thorough), 9])
def test_no_zeros_among_the_draws_after_ctrl_c_a_resumed_run_and_a_crash(
    steps: int, stopped: Path
) -> None:
    whole = values(stored(None))
    with crashing_after(steps):
        stored(stopped, resume=True)
    with xr.open_datatree(stopped, engine="zarr", consolidated=False) as tree:
        posterior = tree.load()["posterior"]
    held = posterior.sizes["draw"]
    assert held == (16 if steps else 12)
    for name in SITES:
        np.testing.assert_array_equal(posterior[name], whole[name][:, :held])
    with pytest.warns(RuntimeWarning, match="consolidated"):  # as of any killed run
        assert xr.open_datatree(stopped, engine="zarr")["posterior"].sizes["draw"] == held
    with pytest.raises(ValueError, match=r"no temperature: only complete .* resume=True"):
        fe.diagnose(stopped)
    again = stored(stopped, resume=True)
    xr.testing.assert_identical(values(again), whole)


@kinds(DAMAGE, fast=FAST[:1])
def test_damage_of_a_stopped_run_is_named_before_it_is_gone_on_with(
    kind: str, stopped: Path
) -> None:
    name, damage = DAMAGE[kind]
    damage(stopped / name)
    before = files(stopped.parent)
    with pytest.raises(ValueError, match=r"run\.zarr is damaged: .*"):
        stored(stopped, resume=True)
    assert files(stopped.parent) == before


KILLED = {kind: of for kind, of in DAMAGE.items() if of[0].startswith(("posterior/", "sample"))}
for _kind in ("a chunk more", "the chains' numbers", "a site more", "the checksums"):
    del KILLED[_kind]  # cut off, or not there yet
for _kind in ("half the checksums", "another temperature beside the draws"):
    del KILLED[_kind]


@kinds(KILLED, fast=("another chunk", "half a chunk", "metadata that are no JSON"))
def test_damage_of_a_killed_run_is_named_before_it_is_gone_on_with(kind: str, killed: Path) -> None:
    path, (name, damage) = killed, DAMAGE[kind]
    assert not (path / PLACE).exists()
    damage(path / name)
    before = files(path.parent)
    with pytest.raises(
        ValueError, match=r"resume=True: .*run\.zarr (was changed since|is)"
    ) as error:
        stored(path, resume=True)
    assert name.rpartition("/c/")[0].removesuffix("/zarr.json") in str(error.value)
    assert files(path.parent) == before


def test_dimensions_by_another_name_are_refused(killed: Path) -> None:
    about = killed / "posterior" / "z" / "zarr.json"
    about.write_text(about.read_text().replace("z_dim_0", "other"))
    with pytest.raises(ValueError, match=r"posterior/z has the dimensions .*'other'"):
        stored(killed, resume=True)


@pytest.mark.thorough
def test_a_killed_run_is_gone_on_with_whatever_came_after_its_last_commit(tmp_path: Path) -> None:
    """The draws of a block that was on its way, whole or in part, are made again."""
    path, append, calls = tmp_path / "run.zarr", Store.append, 0

    def crashing(self: Store, groups: Any) -> None:
        nonlocal calls
        calls += 1
        append(self, groups if calls < 3 else {"posterior": groups["posterior"]})
        if calls == 3:
            raise CrashError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "append", crashing)
        with pytest.raises(CrashError):
            stored(path)
    flip(path / "posterior/z/c/0/2/0")  # no draw that is counted on lies there
    whole = stored(None)
    again = stored(path, resume=True)
    xr.testing.assert_identical(values(again), values(whole))


@pytest.mark.thorough
def test_a_changed_bit_of_the_file_that_resumes_is_noticed(stopped: Path) -> None:
    file = stopped.with_name("run.zarr.resume")
    content = file.read_bytes()
    for place in range(0, len(content), 397):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"resume=True: .*run\.zarr\.resume (is|was)"):
            stored(stopped, resume=True)
    file.write_bytes(content)
    stored(stopped, resume=True)


def test_draws_of_nothing_that_a_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match="is no folder that a run wrote"):
        stored(tmp_path / "empty.zarr", resume=True)
    (tmp_path / "file.zarr").write_text("a text")
    with pytest.raises(ValueError, match="is no folder that a run wrote"):
        stored(tmp_path / "file.zarr", resume=True)
    torch.save({}, tmp_path / "file.zarr.resume")
    with pytest.raises(ValueError, match="is no folder that a run wrote"):
        stored(tmp_path / "file.zarr", resume=True)
