"""Draws as netCDF files: what is written is what is read, whatever the attributes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import ppl_fe as fe
from ppl_fe.inference.program.dimensions import checked_labels
from ppl_fe.inference.record import netcdf
from ppl_fe.inference.record.netcdf import write_netcdf


def model() -> None:
    pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("scale", dist.HalfNormal(1.0))


@pytest.fixture(scope="module")
def draws() -> xr.DataTree:
    return fe.sample(fe.BAOAB(model), num_samples=20, warmup_steps=500, progress_bar=False)


def read(path: Path) -> xr.DataTree:
    with xr.open_datatree(path) as tree:
        return tree.load()


def test_a_round_trip(draws: xr.DataTree, tmp_path: Path) -> None:
    before = {node.path: dict(node.attrs) for node in draws.subtree}
    write_netcdf(draws, tmp_path / "a.nc", {})
    found = read(tmp_path / "a.nc")
    xr.testing.assert_equal(found, draws)
    assert set(found.attrs) == set(draws.attrs)
    for name, value in draws.attrs.items():
        assert np.array_equal(np.asarray(found.attrs[name]), np.asarray(value)), name
    assert {node.path: dict(node.attrs) for node in draws.subtree} == before, "left as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]


def test_a_changed_number_is_an_error(draws: xr.DataTree, tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    write_netcdf(draws, path, {})
    whole = path.read_bytes()
    place = whole.index(draws["posterior"].to_dataset()["scale"].values[0, :4].tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match=r"a\.nc is no netCDF file that xarray can read"):
        fe.summary(path)


def test_what_attributes_cannot_hold(draws: xr.DataTree, tmp_path: Path) -> None:
    odd: dict[str, Any] = {
        "nothing": None,
        "truth": True,
        "numpy_truth": np.bool_(False),
        "mapping": {"a": [1, None]},
        "words": ["a", "b"],
        "no_words": (),
        "numbers": [1.5, 2.5],
        "tensor": torch.tensor([1.0, 2.0]),
        "text": "β = 1",
    }
    write_netcdf(draws, tmp_path / "a.nc", odd)
    attrs = read(tmp_path / "a.nc").attrs
    assert "nothing" not in attrs
    assert (attrs["truth"], attrs["numpy_truth"]) == (1, 0)
    assert json.loads(attrs["mapping"]) == odd["mapping"]
    assert json.loads(attrs["words"]) == ["a", "b"]
    assert json.loads(attrs["no_words"]) == []
    assert list(attrs["numbers"]) == [1.5, 2.5]
    assert list(attrs["tensor"]) == [1.0, 2.0]
    assert attrs["text"] == "β = 1"


def test_xarrays_own_writer_takes_the_draws_too(draws: xr.DataTree, tmp_path: Path) -> None:
    draws.to_netcdf(tmp_path / "a.nc")
    xr.testing.assert_equal(read(tmp_path / "a.nc"), draws)


def test_an_interrupted_write_leaves_the_old_file(
    draws: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.nc"
    write_netcdf(draws, path, {"version": 1})

    def broken(tree: xr.DataTree, where: Path, **options: Any) -> None:
        where.write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(xr.DataTree, "to_netcdf", broken)
        with pytest.raises(OSError, match="disk full"):
            write_netcdf(draws, path, {"version": 2})
    assert read(path).attrs["version"] == 1
    assert [found.name for found in tmp_path.iterdir()] == ["a.nc"]
    write_netcdf(draws, path, {"version": 2})
    assert read(path).attrs["version"] == 2


def test_the_engine_is_what_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = {"netCDF4", "h5netcdf"}

    def find_spec(name: str) -> object | None:
        return object() if name in there else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert netcdf._engine() == "netcdf4"
    there.add("h5py")
    assert netcdf._engine() == "h5netcdf"
    there.remove("h5py")
    there.remove("netCDF4")  # h5netcdf without h5py reads, but does not write
    with pytest.raises(ImportError, match=r"h5netcdf and h5py: pip install 'ppl-fe\[netcdf\]'"):
        write_netcdf(xr.DataTree(), tmp_path / "a.nc", {})
    assert not list(tmp_path.iterdir())


def test_labels_that_are_no_mapping_are_refused() -> None:
    wrong: Any = ["x"]
    with pytest.raises(TypeError, match="dims must be a mapping, got list"):
        checked_labels({"w": ("w_dim_0",)}, {"w_dim_0": 2}, wrong, None)
