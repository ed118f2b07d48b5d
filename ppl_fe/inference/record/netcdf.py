"""Write draws to one netCDF file, which ArviZ and xarray open anywhere."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from ppl_fe.files import atomic_write
from ppl_fe.inference.record.recorder import plain


def write_netcdf(
    draws: xr.DataTree,
    path: str | os.PathLike[str],
    attributes: Mapping[str, Any],
    groups: Mapping[str, xr.Dataset] | None = None,
) -> None:
    """Write draws to a netCDF file, which `xr.open_datatree` reads.

    Mappings, and lists that hold text, become JSON, since netCDF attributes cannot hold them; truth
    values become 0 and 1, and None is left out. The file is written aside and renamed, so that an
    interrupted write leaves an older file as it was.

    Args:
        draws: what to write.
        path: of the file.
        attributes: more of them for the root.
        groups: more of them, by name. Default none.

    Raises:
        ImportError: neither h5netcdf nor netCDF4 is installed.
        OSError: the folder is missing or not to be written in.

    Example:
        >>> import tempfile
        >>> draws = xr.DataTree.from_dict({"posterior": xr.Dataset({"w": ("draw", [1.0, 2.0])})})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_netcdf(draws, f"{folder}/a.nc", {"wbic": 3.5, "notes": ["a", "b"]})
        ...     with xr.open_datatree(f"{folder}/a.nc") as found:
        ...         float(found.attrs["wbic"]), found.attrs["notes"]
        (3.5, '["a", "b"]')
    """
    path, engine = Path(path), _engine()
    tree = xr.DataTree.from_dict(
        {
            **{name: node.to_dataset() for name, node in draws.children.items()},
            **(groups or {}),
        }
    )
    tree.attrs = dict(draws.attrs) | dict(attributes)
    for node in tree.subtree:
        node.attrs = {
            str(name): _writable(value) for name, value in node.attrs.items() if value is not None
        }
    with atomic_write(path) as aside:
        tree.to_netcdf(aside, engine=engine, encoding=_summed(tree))


def _summed(tree: xr.DataTree) -> dict[str, Any]:
    """Ask for checksums of all numbers, so that reading other ones is an error."""
    return {
        node.path: {
            name: {"fletcher32": True}
            for name, values in node.to_dataset(inherit=False).variables.items()
            if values.size and values.ndim and values.dtype.kind not in "UO"
        }
        for node in tree.subtree
    }


def _engine() -> Literal["h5netcdf", "netcdf4"]:
    if importlib.util.find_spec("h5netcdf") and importlib.util.find_spec("h5py"):
        return "h5netcdf"
    if importlib.util.find_spec("netCDF4"):
        return "netcdf4"
    raise ImportError("netCDF files need h5netcdf and h5py: pip install 'ppl-fe[netcdf]'")


def _writable(value: Any) -> Any:
    value = plain(value)
    if not isinstance(value, list | tuple):
        return value
    numbers = len(value) > 0 and all(
        isinstance(entry, int | float) and not isinstance(entry, bool) for entry in value
    )
    return list(value) if numbers else json.dumps(list(value))
