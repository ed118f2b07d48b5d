"""R-hat and temperature by layer: each row shows its own layer's numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr
from arviz_stats.base import array_stats
from cases.draws import draws_of, noise
from matplotlib.figure import Figure

from ppl_fe.plots import plot_r_hat_by_layer, plot_temperature_by_layer

R_HAT = np.array([1.0, 1.001, 1.002, 1.003, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])


def rows(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def named(axes: Any, label: str) -> Any:
    (found,) = [one for one in [*axes.get_lines(), *axes.collections] if one.get_label() == label]
    return found


def test_r_hat_of_each_layer() -> None:
    axes = plot_r_hat_by_layer(draws_of(r_hat=R_HAT))
    assert rows(axes) == ["first", "second"]
    parts = (R_HAT[:4], R_HAT[4:])
    np.testing.assert_allclose(named(axes, "median").get_xdata(), [np.median(p) for p in parts])
    np.testing.assert_allclose(named(axes, "largest").get_xdata(), [1.003, 1.6])
    for label, low, high in (("quartiles", 0.25, 0.75), ("5 to 95 %", 0.05, 0.95)):
        for row, (segment, part) in enumerate(
            zip(named(axes, label).get_segments(), parts, strict=True)
        ):
            np.testing.assert_allclose(segment[:, 0], np.quantile(part, [low, high]))
            np.testing.assert_allclose(segment[:, 1], row)
    assert axes.get_xlabel() == "split R-hat of the coordinates"
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first layer is on top"


def test_far_off_r_hat_is_drawn_on_a_log_axis() -> None:
    assert plot_r_hat_by_layer(draws_of(r_hat=R_HAT)).get_xscale() == "linear"
    assert plot_r_hat_by_layer(draws_of(r_hat=10 * R_HAT)).get_xscale() == "log"


def test_unknown_r_hat_is_left_out_and_none_at_all_refused() -> None:
    some = R_HAT.copy()
    some[:5] = np.nan
    assert rows(plot_r_hat_by_layer(draws_of(r_hat=some))) == ["second"]
    with pytest.raises(ValueError, match="raise num_samples"):
        plot_r_hat_by_layer(draws_of(r_hat=np.full(10, np.nan)))


def test_more_layers_than_rows_share_them() -> None:
    many = {f"tensor.{k}": [k, k + 1] for k in range(100)}
    tree = draws_of(blocks=json.dumps(many))
    table = np.ones((4, 100))
    table[2] = 1 + np.arange(100) / 100
    tree["moments"] = xr.DataTree(
        xr.Dataset(
            {"w": (("moment", "w_dim_0"), table)}, {"moment": ["mean", "sd", "r_hat", "ess"]}
        )
    )
    axes = plot_r_hat_by_layer(tree)
    assert rows(axes)[:2] == ["tensor.0 ... tensor.1", "tensor.2 ... tensor.3"]
    np.testing.assert_allclose(named(axes, "largest").get_xdata(), table[2, 1::2])


def test_long_names_keep_what_tells_them_apart() -> None:
    names = [f"encoder.layers.{k}.attention.output.dense.weight" for k in range(2)]
    tree = draws_of(blocks=json.dumps({names[0]: [0, 4], names[1]: [4, 10]}))
    shown = rows(plot_r_hat_by_layer(tree))
    assert all(len(name) <= 34 for name in shown)
    assert shown[0] == "…s.0.attention.output.dense.weight"


def test_temperature_of_each_layer_with_its_errors() -> None:
    heat = 1 + 0.1 * noise(4, 100, 2, seed=5) + np.array([0.0, 0.5])
    axes = plot_temperature_by_layer(draws_of(temperatures=heat))
    assert rows(axes) == ["first", "second", "all coordinates", "stiffest direction"]
    layers, overall = axes.containers
    np.testing.assert_allclose(layers[0].get_xdata(), heat.mean((0, 1)))
    np.testing.assert_allclose(layers[0].get_ydata(), [0, 1])
    np.testing.assert_allclose(overall[0].get_xdata()[0], heat.mean())
    np.testing.assert_allclose(overall[0].get_ydata(), [2, 3])
    error = array_stats.mcse(heat[..., 1], chain_axis=0, draw_axis=1, method="mean")
    bar = layers[2][0].get_segments()[1][:, 0]
    np.testing.assert_allclose(bar, heat[..., 1].mean() + np.array([-2, 2]) * error)
    box = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((0.95, 1.05))
    assert list(named(axes, "target T").get_xdata()) == [1.0, 1.0]
    assert axes.get_xlabel() == "effective temperature (target T = 1)"


def test_another_target_temperature() -> None:
    axes = plot_temperature_by_layer(draws_of(temperature=0.5, tolerance=0.1))
    assert list(named(axes, "target T").get_xdata()) == [0.5, 0.5]
    box = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((0.45, 0.55))


@pytest.mark.parametrize("plot", [plot_r_hat_by_layer, plot_temperature_by_layer])
def test_given_axes_and_groups(plot: Any) -> None:
    given = Figure().subplots()
    assert plot(draws_of(), axes=given) is given
    with pytest.raises(ValueError, match="2 targets side by side"):
        plot(draws_of(num_groups=2))
    with pytest.raises(TypeError, match="got int"):
        plot(3)
