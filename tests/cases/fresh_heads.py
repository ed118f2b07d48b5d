"""A linear network whose head is fresh, and everything about it in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from exact import LinearGaussian, linear_gaussian_posterior
from numpy.typing import NDArray
from torch import Tensor, nn

import ppl_fe as fe

N, D_BODY, D_HEAD = 25, 4, 3
_RNG = np.random.default_rng(181)
X = _RNG.standard_normal((N, D_BODY + D_HEAD)) * np.linspace(0.4, 1.4, D_BODY + D_HEAD)
TRUE = np.array([0.6, -0.4, 0.5, 0.2, 1.0, -0.7, 0.4])
Y = X @ TRUE + _RNG.standard_normal(N)
DATA = torch.tensor(X, dtype=torch.float32), torch.tensor(Y, dtype=torch.float32)
QUIET: dict[str, Any] = {"likelihood": "normal", "compile": "traced", "progress_bar": False}


class TwoParts(nn.Module):
    """f(x) = b·x₁ + h·x₂: linear in a pretrained body b and a fresh head h."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(D_BODY, 1, bias=False)
        self.head = nn.Linear(D_HEAD, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.body(x[:, :D_BODY]) + self.head(x[:, D_BODY:])
        return output


def body_state(weights: NDArray[np.float64]) -> dict[str, Tensor]:
    """A checkpoint of the body alone."""
    return {"body.weight": torch.tensor(weights[None], dtype=torch.float32)}


def with_body(weights: NDArray[np.float64]) -> fe.FlatNetwork:
    """The network of such a checkpoint, whose head holds what does not matter."""
    torch.manual_seed(7)
    network = fe.FlatNetwork(TwoParts())
    return network.with_state(body_state(weights), network.head_names("head"))


def exactly(
    weights: NDArray[np.float64],
    gamma: float,
    *,
    head_precision: float = 1.0,
    beta: float = 1.0,
    rows: slice = slice(None),
) -> LinearGaussian:
    """The closed forms for a body of these weights and a head of N(0, 1/head_precision)."""
    anchor = np.append(weights, np.zeros(D_HEAD))
    precision = np.repeat([gamma, head_precision], [D_BODY, D_HEAD])
    return linear_gaussian_posterior(X[rows], Y[rows], anchor, gamma=precision, beta=beta)


def uninterrupted() -> xr.DataTree:
    """What a ladder that is no run gives as its draws: none, and that nobody stopped it."""
    return xr.DataTree(xr.Dataset(attrs={"interrupted": False}))
