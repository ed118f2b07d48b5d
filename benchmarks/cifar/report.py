"""The printed report: Table 1's counterpart, inside configurations, reliability, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cifar.agreement import beyond, clustered_correlations, reliability
from ppl_fe.free_energy.correlation import correlations, verdict

BASELINES = {
    "training_loss": "training loss (matched)",
    "validation_loss": "validation loss",
    "geometric_complexity": "geometric complexity",
    "neural_collapse": "neural collapse (CDNV)",
    "epochs": "epochs that pretraining took",
    "weight_norm": "norm of the weights",
}
FREE_ENERGIES = {
    "wbic": "free energy (pretraining WBIC)",
    "held_out": "its held-out form, nK + llc log n",
    "wbic_local": "free energy, tighter localisation",
    "held_out_local": "held-out form, tighter localisation",
}
CRITERIA = FREE_ENERGIES | BASELINES
# Munn & Wei 2025, Table 1, as (full fine-tuning, few-shot); ResNet-18 on CIFAR-FS.
PUBLISHED = {
    "wbic": (-0.820, -0.890),
    "geometric_complexity": (-0.767, -0.443),
    "neural_collapse": (-0.632, -0.188),
}


def describe(
    table: pd.DataFrame, outcomes: Mapping[str, str], gammas: Sequence[float]
) -> list[str]:
    """The whole report on the checkpoints that reached the target, as lines.

    Args:
        table: one row a checkpoint: the criteria, each outcome and its paired standard error
            (`<outcome>_error`), `configuration`.
        outcomes: column -> what it is.
        gammas: localisation of the criterion and of its tighter form.
    """
    clustered = {name: clustered_correlations(table, list(CRITERIA), name) for name in outcomes}
    within = {
        name: correlations(table, list(CRITERIA), name, method=["pearson"], groups="configuration")
        for name in outcomes
    }
    ranks = {name: correlations(table, list(CRITERIA), name) for name in outcomes}
    lines = [
        *_accuracies(table, outcomes),
        *_estimates(table, gammas),
        *_configurations(table, outcomes),
        "Pearson correlation with accuracy over all checkpoints [95 % by resampling whole "
        "configurations]; every criterion claims a negative one",
        _cells(clustered, "pearson"),
        "",
        "Beside the paper's Table 1 (ResNet-18): full fine-tuning and few-shot",
    ]
    for name, published in PUBLISHED.items():
        here = [f"{clustered[outcome]['pearson'][name]:+.2f}" for outcome in ("full", "few")]
        lines.append(
            f"  {CRITERIA[name]:<36}paper {published[0]:+.3f} {published[1]:+.3f}   here "
            + " ".join(here)
        )
    lines += [
        "",
        "Spearman correlation over all checkpoints [95 % by resampling checkpoints: too narrow "
        "where seeds of a configuration resemble each other]",
        _cells(ranks, "spearman"),
        "",
        "Pearson correlation inside configurations: across seeds, about each configuration's mean",
        _cells(within, "pearson"),
        "",
        *_halves(table, outcomes),
        "What WBIC adds to each baseline: its partial Pearson correlation given that baseline "
        "[95 % by resampling whole configurations]",
        _partial(table, outcomes),
        "",
        "When the criterion holds here (signs whose 95 % interval excludes zero; Pearson)",
        *_signs(clustered, "over configurations"),
        *_signs(within, "inside configurations"),
        "",
        "Verdicts (against the baselines; intervals by resampling whole configurations)",
    ]
    for name, meaning in outcomes.items():
        judged = clustered[name].drop(["wbic_local", "held_out_local"])
        lines.append(f"- {name} ({meaning}): {verdict(judged, outcome=name)}")
    return lines


def _accuracies(table: pd.DataFrame, outcomes: Mapping[str, str]) -> list[str]:
    rows = []
    for name, meaning in outcomes.items():
        share = reliability(table[name], table[f"{name}_error"])
        rows.append(
            {
                "outcome": name,
                "mean": f"{table[name].mean():.3f}",
                "sd over checkpoints": f"{table[name].std():.4f}",
                "paired error": f"{np.sqrt((table[f'{name}_error'] ** 2).mean()):.4f}",
                "reliability": f"{share:.2f}",
                "largest |r| to be seen": f"{np.sqrt(share):.2f}",
                "what": meaning,
            }
        )
    heading = "Downstream accuracies (paired error: of a checkpoint's distance from the average)"
    return [heading, pd.DataFrame(rows).to_string(index=False), ""]


def _estimates(table: pd.DataFrame, gammas: Sequence[float]) -> list[str]:
    rows = []
    for suffix, gamma in zip(("", "_local"), gammas, strict=True):
        wbic, error = table[f"wbic{suffix}"], table[f"wbic_mcse{suffix}"]
        llc, r_hat, ess = (table[f"{name}{suffix}"] for name in ("llc", "r_hat", "ess"))
        rows.append(
            {
                "localisation": f"{gamma:g}",
                "WBIC mean": f"{wbic.mean():.1f}",
                "sd": f"{wbic.std():.1f}",
                "MCSE": f"{np.sqrt((error**2).mean()):.1f}",
                "reliability": f"{reliability(wbic, error):.2f}",
                "llc": f"{llc.min():.1f} to {llc.max():.1f}",
                "R-hat median, max": f"{r_hat.median():.3f}, {r_hat.max():.3f}",
                "ESS median, min": f"{ess.median():.0f}, {ess.min():.0f}",
            }
        )
    return ["Free energies over checkpoints", pd.DataFrame(rows).to_string(index=False), ""]


def _configurations(table: pd.DataFrame, outcomes: Mapping[str, str]) -> list[str]:
    """Means over seeds, in the order of WBIC, so that a bend in a relation can be seen."""
    names = [name for name in CRITERIA if name != "training_loss"]
    means = table.groupby("configuration")[[*names, *outcomes]].mean().sort_values("wbic")
    means["seeds"] = table.groupby("configuration").size()
    decimals = dict.fromkeys((*FREE_ENERGIES, "epochs"), 1) | {"seeds": 0}
    shown = {
        name: means[name].map(f"{{:.{decimals.get(name, 3)}f}}".format)
        for name in map(str, means.columns)
    }
    return ["Means over the seeds of each configuration", pd.DataFrame(shown).to_string(), ""]


def _cell(row: pd.Series, method: str) -> str:
    value, low, high = row[method], row[f"{method}_low"], row[f"{method}_high"]
    return "undefined" if np.isnan(value) else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _cells(frames: Mapping[str, pd.DataFrame], method: str) -> str:
    columns = {
        outcome: [_cell(row, method) for _, row in frame.iterrows()]
        for outcome, frame in frames.items()
    }
    return pd.DataFrame(columns, index=list(CRITERIA.values())).to_string()


def _halves(table: pd.DataFrame, outcomes: Mapping[str, str]) -> list[str]:
    """A relation that bends has one sign among configurations of low WBIC, another among high."""
    means = table.groupby("configuration")["wbic"].mean()
    low = table["configuration"].isin(means.index[means <= means.median()])
    columns = {
        outcome: [
            _cell(row, "pearson")
            for part in (table[low], table[~low])
            for _, row in clustered_correlations(part, ["wbic"], outcome).iterrows()
        ]
        for outcome in outcomes
    }
    rows = ["half of the configurations with lower WBIC", "half with higher WBIC"]
    return [
        "Pearson correlation of WBIC, by halves [95 % by resampling whole configurations]",
        pd.DataFrame(columns, index=rows).to_string(),
        "",
    ]


def _partial(table: pd.DataFrame, outcomes: Mapping[str, str]) -> str:
    controls = [name for name in BASELINES if name != "training_loss"]
    columns = {
        outcome: [_cell(beyond(table, "wbic", control, outcome), "pearson") for control in controls]
        for outcome in outcomes
    }
    return pd.DataFrame(columns, index=[f"given {BASELINES[c]}" for c in controls]).to_string()


def _signs(frames: Mapping[str, pd.DataFrame], where: str) -> list[str]:
    """For each form of the criterion: the outcomes in which its sign is seen or reversed."""
    lines = []
    for criterion, meaning in FREE_ENERGIES.items():
        found: dict[str, list[str]] = {"as claimed": [], "reversed": [], "undecided": []}
        for outcome, frame in frames.items():
            if frame["pearson_high"][criterion] < 0:
                found["as claimed"].append(outcome)
            elif frame["pearson_low"][criterion] > 0:
                found["reversed"].append(outcome)
            else:
                found["undecided"].append(outcome)
        told = "; ".join(f"{key}: {', '.join(names) or '-'}" for key, names in found.items())
        lines.append(f"  {meaning:<36}{where:<22}{told}")
    return lines
