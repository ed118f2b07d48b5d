"""Pyro programs: what the posterior is.

They import torch, Pyro and scipy alone, so they run under Pyro's own NUTS and SVI as well.
"""

from __future__ import annotations

from .bayestune import BayesTunePosterior, bayestune_posterior
from .likelihoods import categorical, next_token, normal
from .localized import LocalPosterior, local_posterior
from .priors import LaplaceGamma, gaussian, gaussian_scale_mixture, horseshoe, student_t
from .priors import laplace_gamma as laplace_gamma  # by its old name, for one release

__all__ = [
    "BayesTunePosterior",
    "LaplaceGamma",
    "LocalPosterior",
    "bayestune_posterior",
    "categorical",
    "gaussian",
    "gaussian_scale_mixture",
    "horseshoe",
    "local_posterior",
    "next_token",
    "normal",
    "student_t",
]
