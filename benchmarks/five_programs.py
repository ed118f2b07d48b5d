"""Five programs by NUTS of NumPyro: the moments that `docs/pages/five_programs.md` is held against.

    python benchmarks/five_programs.py --output benchmarks/results/five_programs.json

The programs are those of the page, line by line, in double precision; the data are its files
(`docs/pages/data`), and scikit-learn's diabetes. Four chains of 2,500 draws after 1,000 of
warm-up, with acceptance 0.9. What is kept of every scalar: mean, standard deviation, the Monte
Carlo standard errors of both, R-hat and bulk ESS; with `--only NAME ...` the other programs keep
what the file has. It needs `numpyro`, `funsor`, `jax`, `scikit-learn` and `arviz-stats`, and
neither torch nor this package.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.infer import MCMC, NUTS

DATA = Path(__file__).resolve().parent.parent / "docs" / "pages" / "data"
NUM_CHAINS, WARMUP, NUM_SAMPLES = 4, 1000, 2500
COLUMNS = ["mean", "sd", "mcse_mean", "mcse_sd", "r_hat", "ess_bulk"]
TREES = ["oak", "beech", "pine", "birch"]


def pumps(frame: pd.DataFrame) -> None:
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("pump", len(frame)):
        apart = numpyro.sample("apart", dist.Normal(0.0, 1.0))
        rate = numpyro.deterministic("rate", jnp.exp(mean + spread * apart))
        expected = rate * frame["hours"].to_numpy()
        numpyro.sample("failures", dist.Poisson(expected), obs=frame["failures"].to_numpy())


def stackloss(frame: pd.DataFrame) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 50.0))
    slope = numpyro.sample("slope", dist.Normal(jnp.zeros(2), 5.0).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(10.0))
    freedom = numpyro.sample("freedom", dist.Gamma(2.0, 0.1))
    line = intercept + frame[["flow", "water"]].to_numpy() @ slope
    with numpyro.plate("day", len(frame)):
        numpyro.sample("loss", dist.StudentT(freedom, line, scale), obs=frame["loss"].to_numpy())


def trees(frame: pd.DataFrame) -> None:
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(4)))
    alike = numpyro.sample("alike", dist.Gamma(2.0, 0.1))
    with numpyro.plate("plot", len(frame)):
        own = numpyro.sample("own", dist.Dirichlet(alike * share))
        numpyro.sample("count", dist.Multinomial(60, own), obs=frame[TREES].to_numpy())


def petals(frame: pd.DataFrame) -> None:
    part = numpyro.sample("part", dist.Beta(2.0, 2.0))
    low = numpyro.sample("low", dist.Normal(1.0, 1.0))
    gap = numpyro.sample("gap", dist.HalfNormal(5.0))
    mean = jnp.stack([low, low + gap])
    sd = numpyro.sample("sd", dist.HalfNormal(jnp.ones(2)).to_event(1))
    with numpyro.plate("flower", len(frame)):
        kind = numpyro.sample("kind", dist.Bernoulli(part), infer={"enumerate": "parallel"})
        numpyro.sample("length", dist.Normal(mean[kind], sd[kind]), obs=frame["length"].to_numpy())


def horseshoe(frame: pd.DataFrame) -> None:
    tau = numpyro.sample("tau", dist.HalfCauchy(0.1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("column", 10):
        half = numpyro.sample("half", dist.HalfNormal(1.0))
        narrow = numpyro.sample("narrow", dist.Gamma(1.5, 1.5))
        apart = numpyro.sample("apart", dist.Normal(0.0, 1.0))
    wide = tau * half / jnp.sqrt(narrow)
    slope = numpyro.deterministic("slope", wide / jnp.sqrt(1 + wide**2) * apart)
    line = frame.drop(columns="y").to_numpy() @ slope
    with numpyro.plate("patient", len(frame)):
        numpyro.sample("y", dist.Normal(line, sigma), obs=frame["y"].to_numpy())


PROGRAMS = {
    "pumps": pumps,
    "stackloss": stackloss,
    "trees": trees,
    "petals": petals,
    "horseshoe": horseshoe,
}


def read(name: str) -> pd.DataFrame:
    if name != "horseshoe":
        return pd.read_csv(DATA / f"{name}.csv")
    from sklearn.datasets import load_diabetes

    frame = load_diabetes(as_frame=True, scaled=False).frame.rename(columns={"target": "y"})
    return (frame - frame.mean()) / frame.std()


def moments(name: str, program: Callable[[pd.DataFrame], None]) -> dict[str, dict[str, float]]:
    import arviz_base
    import arviz_stats

    nuts = NUTS(program, target_accept_prob=0.9)
    mcmc = MCMC(
        nuts,
        num_warmup=WARMUP,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(0), read(name))
    draws = {site: jax.device_get(x) for site, x in mcmc.get_samples(group_by_chain=True).items()}
    tree: Any = arviz_base.from_dict({"posterior": draws})
    table = arviz_stats.summary(tree, round_to="none")[COLUMNS]
    print(name, f"R-hat {table['r_hat'].max():.4f}, ESS {table['ess_bulk'].min():.0f}", flush=True)
    rows = table.astype(float).round(8).to_dict("index")
    return {str(scalar): {str(k): v for k, v in row.items()} for scalar, row in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    numpyro.enable_x64()
    kept = given.output is not None and given.output.exists()
    found = json.loads(given.output.read_text(encoding="utf-8")) if kept else {}
    for name in given.only:
        found[name] = moments(name, PROGRAMS[name])
        if given.output:
            text = json.dumps({own: found[own] for own in PROGRAMS if own in found}, indent=1)
            given.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
