"""Exact answers that samplers and estimators are tested against.

Closed forms, quadrature and one exact Gibbs sampler in numpy and scipy alone: nothing here shares
a line with what it judges. Each function has its own test against a second, independent route.
"""

from .baoab import baoab_affine, baoab_stationary_variance
from .groups import Group, laplace_gamma_group
from .linear_gaussian import LinearGaussian, checkpoints_with_gaps, linear_gaussian_posterior
from .normal_crossing import (
    NormalCrossing,
    normal_crossing_learning_coefficient,
    normal_crossing_posterior,
)
from .quadratic import affine_stationary_covariance, llc, stationary_variance
from .reduced_rank import deep_linear_learning_coefficient, reduced_rank_learning_coefficient
from .reduced_rank_gibbs import GibbsLLC, reduced_rank_gibbs_llc
from .reduced_rank_spectrum import reduced_rank_llc
from .scales import (
    LaplaceGamma,
    laplace_gamma_posterior,
    log_marginal_prior,
    scale_moment,
    scale_sd,
)
from .scores import mcse_of_mean, z_score

__all__ = [
    "GibbsLLC",
    "Group",
    "LaplaceGamma",
    "LinearGaussian",
    "NormalCrossing",
    "affine_stationary_covariance",
    "baoab_affine",
    "baoab_stationary_variance",
    "checkpoints_with_gaps",
    "deep_linear_learning_coefficient",
    "laplace_gamma_group",
    "laplace_gamma_posterior",
    "linear_gaussian_posterior",
    "llc",
    "log_marginal_prior",
    "mcse_of_mean",
    "normal_crossing_learning_coefficient",
    "normal_crossing_posterior",
    "reduced_rank_gibbs_llc",
    "reduced_rank_learning_coefficient",
    "reduced_rank_llc",
    "scale_moment",
    "scale_sd",
    "stationary_variance",
    "z_score",
]
