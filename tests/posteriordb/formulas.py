"""The log-densities of the ten `model.stan`, written out in NumPy and SciPy line by line.

Nothing here is shared with `programs.py`. Each takes Stan's data block and one draw of Stan's
parameters, and gives `target` on unconstrained space, that is with the log-Jacobian of Stan's
transforms, up to a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import beta as beta_law
from scipy.stats import cauchy, norm

Values = Mapping[str, Any]


def dogs(data: Values, draw: Values) -> float:
    target = np.sum(norm.logpdf(draw["beta"], 0, 100))
    for dog in data["y"]:
        avoided, shocked = 0.0, 0.0
        for shock in dog:
            p = expit(draw["beta"] @ [1.0, avoided, shocked])
            target += np.log(p if shock == 1 else 1 - p)
            avoided, shocked = avoided + 1 - shock, shocked + shock
    return float(target)


def earnings(data: Values, draw: Values) -> float:
    b, height, male = draw["beta"], data["height"], data["male"]
    mean = b[0] + b[1] * height + b[2] * male + b[3] * height * male
    return normal_likelihood(np.log(data["earn"]), mean, draw["sigma"])


def eight_schools(data: Values, draw: Values) -> float:
    theta, mu, tau = draw["theta"], draw["mu"], draw["tau"]
    target = np.sum(norm.logpdf((theta - mu) / tau, 0, 1)) + norm.logpdf(mu, 0, 5)
    target += np.sum(norm.logpdf(data["y"], theta, data["sigma"])) + cauchy.logpdf(tau, 0, 5)
    return float(target + np.log(tau))


def kidiq(data: Values, draw: Values) -> float:
    mean = draw["beta"][0] + draw["beta"][1] * data["mom_iq"]
    prior = cauchy.logpdf(draw["sigma"], 0, 2.5)
    return float(prior + normal_likelihood(data["kid_score"], mean, draw["sigma"]))


def kilpisjarvi(data: Values, draw: Values) -> float:
    alpha, beta = draw["alpha"], draw["beta"]
    prior = norm.logpdf(alpha, data["pmualpha"], data["psalpha"])
    prior += norm.logpdf(beta, data["pmubeta"], data["psbeta"])
    return float(prior + normal_likelihood(data["y"], alpha + beta * data["x"], draw["sigma"]))


def mixture(data: Values, draw: Values) -> float:
    y, mu, sigma, theta = data["y"], draw["mu"], draw["sigma"], draw["theta"]
    target = np.sum(norm.logpdf(sigma, 0, 2)) + np.sum(norm.logpdf(mu, 0, 2))
    target += beta_law.logpdf(theta, 5, 5)
    lower, upper = norm.pdf(y, mu[0], sigma[0]), norm.pdf(y, mu[1], sigma[1])
    target += np.log(theta * lower + (1 - theta) * upper).sum()
    jacobian = np.log(mu[1] - mu[0]) + np.log(sigma).sum() + np.log(theta * (1 - theta))
    return float(target + jacobian)


def mesquite(data: Values, draw: Values) -> float:
    b, diam1, diam2 = draw["beta"], data["diam1"], data["diam2"]
    mean = b[0] + b[1] * np.log(diam1 * diam2 * data["canopy_height"])
    mean = mean + b[2] * np.log(diam1 * diam2) + b[3] * np.log(diam1 / diam2)
    mean = mean + b[4] * np.log(data["total_height"]) + b[5] * data["group"]
    return normal_likelihood(np.log(data["weight"]), mean, draw["sigma"])


def nes(data: Values, draw: Values) -> float:
    b, age = draw["beta"], data["age_discrete"]
    mean = b[0] + b[1] * data["real_ideo"] + b[2] * data["race_adj"] + b[3] * (age == 2)
    mean = mean + b[4] * (age == 3) + b[5] * (age == 4) + b[6] * data["educ1"]
    mean = mean + b[7] * data["gender"] + b[8] * data["income"]
    return normal_likelihood(data["partyid7"], mean, draw["sigma"])


def blr(data: Values, draw: Values) -> float:
    prior = np.sum(norm.logpdf(draw["beta"], 0, 10)) + norm.logpdf(draw["sigma"], 0, 10)
    return float(prior + normal_likelihood(data["y"], data["X"] @ draw["beta"], draw["sigma"]))


def normal_likelihood(y: Any, mean: Any, sigma: Any) -> float:
    """y ~ normal(mean, sigma), and the Jacobian of sigma's logarithm."""
    return float(np.sum(norm.logpdf(y, mean, sigma)) + np.log(sigma))


FORMULAS: dict[str, Callable[[Values, Values], float]] = {
    "dogs-dogs": dogs,
    "earnings-logearn_interaction": earnings,
    "eight_schools-eight_schools_noncentered": eight_schools,
    "kidiq-kidscore_momiq": kidiq,
    "kilpisjarvi_mod-kilpisjarvi": kilpisjarvi,
    "low_dim_gauss_mix-low_dim_gauss_mix": mixture,
    "mesquite-logmesquite_logvash": mesquite,
    "nes1976-nes": nes,
    "sblrc-blr": blr,
    "sblri-blr": blr,
}
