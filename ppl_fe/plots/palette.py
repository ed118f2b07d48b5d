"""How every picture looks: its colours, markers and lines, and the axes it is drawn on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours: which the colour-blind distinguish. Some are alike in grey, so that what
# must be distinguished also has a marker or its own line style.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "osD^vPX"
LINE_STYLES = ("-", "--", "-.", ":")
BAND = "#DDDDDD"

WIDTH = 7.0  # inches, a page's text; matplotlib's own 10 pt fonts are then read in print
HEIGHT = 4.0
LONGEST_NAME = 34  # letters of a row's name
NUM_ERRORS = 2.0  # half an error bar, in standard errors: about 95 %


def one_axes(axes: Axes | None, height: float = HEIGHT) -> Axes:
    """Give these axes, or those of a new figure, without a frame above and to the right."""
    if axes is None:
        axes = new_figure(height).subplots()
    bare(axes)
    return axes


def row_of_axes(height: float = HEIGHT) -> NDArray[Any]:
    """Make (2,) axes side by side in a new figure."""
    every: NDArray[Any] = new_figure(height).subplots(1, 2)
    for axes in every:
        bare(axes)
    return every


def new_figure(height: float = HEIGHT) -> Figure:
    """Make a figure of pyplot's: a notebook shows it, `plt.show` and `plt.savefig` find it.

    As with every figure of pyplot, whoever makes many of them in one process closes them.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'ppl-fe[plots]'") from error
    return plt.figure(figsize=(WIDTH, height), layout="constrained")


def bare(axes: Axes) -> None:
    """Take away the frame above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)


def name_rows(axes: Axes, names: list[str]) -> None:
    """Name the rows along the vertical axis, the first on top; long names lose their start."""
    axes.set_yticks(range(len(names)), [_shortened(name) for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)


def height_of_rows(count: int) -> float:
    """Compute the inches in which `count` row names of 9 pt do not touch."""
    return 1.4 + 0.17 * count


def legend_beside(axes: Axes) -> None:
    """Put a legend to the right of the axes, where it hides nothing."""
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def legend_above(axes: Axes) -> None:
    """Put a legend in one row above the axes, for lines from their bottom to their top."""
    axes.legend(
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(axes.get_legend_handles_labels()[0]),
    )


def _shortened(name: str) -> str:
    parts = name.split(" ... ")  # first and last of several tensors that share a row
    room = LONGEST_NAME // len(parts)
    return " ... ".join(
        part if len(part) <= room else f"…{part[len(part) - room + 1 :]}" for part in parts
    )
