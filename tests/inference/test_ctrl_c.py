"""Ctrl-C waits for the end of the step at hand, so that no draw is written by halves."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from cases.stored_runs import run

from ppl_fe.inference.record import recorder as draws_module
from ppl_fe.inference.record.zarr_store import Store
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.step_function import Statistics


@pytest.fixture
def _pythons_own_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.usefixtures("_pythons_own_ctrl_c")
def test_ctrl_c_in_the_middle_of_a_write_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 2)  # blocks of four draws
    append, path, whole = Store.append, tmp_path / "run.zarr", run(None)

    def pressed(self: Store, groups: Mapping[str, Any]) -> None:
        append(self, {"posterior": groups["posterior"]})
        signal.raise_signal(signal.SIGINT)
        append(self, {"sample_stats": groups["sample_stats"]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "append", pressed)
        with pytest.warns(RuntimeWarning, match="4 of 12 draws were kept; resume=True goes on"):
            part = run(path)
    np.testing.assert_array_equal(part.posterior["x"], whole.posterior["x"][:, :4])
    assert xr.open_datatree(path, engine="zarr").sample_stats.sizes["draw"] == 4
    for tree in (run(path, resume=True), xr.open_datatree(path, engine="zarr").load()):
        for group in whole.children:
            xr.testing.assert_identical(
                tree[group].to_dataset().drop_attrs(), whole[group].to_dataset().drop_attrs()
            )


@pytest.mark.usefixtures("_pythons_own_ctrl_c")
def test_a_second_ctrl_c_is_not_waited_for() -> None:
    advance, reached = Chains.advance, False

    def pressed_twice(self: Chains) -> Statistics:
        nonlocal reached
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        reached = True
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chains, "advance", pressed_twice)
        with pytest.raises(KeyboardInterrupt):
            run(None, warmup_steps=0)
    assert not reached
