"""Pyro programs: what the posterior is.

They import torch and Pyro alone, and run under Pyro's own NUTS and SVI as well as `fe.sample`.
"""

from __future__ import annotations

from .likelihoods import categorical, next_token, normal
from .localized import LocalPosterior, local_posterior
from .priors import gaussian

__all__ = [
    "LocalPosterior",
    "categorical",
    "gaussian",
    "local_posterior",
    "next_token",
    "normal",
]
