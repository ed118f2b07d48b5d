"""The printed table: Table 1's counterpart, within configurations, reliability, verdicts, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ppl_fe.demo.transfer import Transfer
from ppl_fe.free_energy.correlation import correlations, verdict

CRITERIA = {
    "wbic": "free energy (pretraining WBIC)",
    "held_out": "its held-out form, nK + llc log n",
    "wbic_local": "free energy, tighter localisation",
    "held_out_local": "held-out form, tighter localisation",
    "training_loss": "training loss",
    "validation_loss": "validation loss",
    "geometric_complexity": "geometric complexity",
    "neural_collapse": "neural collapse (CDNV)",
}
# Munn & Wei 2025, Table 1, as (full fine-tuning, few-shot); ResNet-18 on CIFAR-FS.
PUBLISHED = {
    "wbic": (-0.820, -0.890),
    "geometric_complexity": (-0.767, -0.443),
    "neural_collapse": (-0.632, -0.188),
}


def reliability(values: pd.Series, errors: pd.Series) -> float:
    """Share of the variance over checkpoints that is not measurement error, in [0, 1].

    No criterion can correlate with the measured values better than the root of this.
    """
    spread = float(values.var())
    return max(0.0, 1 - float((errors**2).mean()) / spread) if spread > 0 else float("nan")


def paired_errors(table: pd.DataFrame, outcome: str, folder: Path) -> pd.Series:
    """Standard error of each checkpoint's distance from the average, from the saved accuracies.

    All checkpoints meet the same episodes, so what an episode does to all of them cancels.
    """
    reached = table[table["training_loss"].notna()]
    parts = [
        torch.load(folder / f"{name}_{outcome}.pt".replace(" ", "_"))
        for name in reached["configuration"].unique()
    ]
    return pd.Series(Transfer(torch.cat(parts)).paired_error.numpy(), reached.index)


def _cell(row: pd.Series, method: str) -> str:
    value, low, high = row[method], row[f"{method}_low"], row[f"{method}_high"]
    return "undefined" if np.isnan(value) else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def correlation_table(
    table: pd.DataFrame, outcomes: Mapping[str, str], method: str, groups: str | None = None
) -> pd.DataFrame:
    """Criteria × outcomes, each cell a correlation with its 95 % interval."""
    criteria = [name for name in CRITERIA if name in table]
    columns = {}
    for outcome in outcomes:
        frame = correlations(table, criteria, outcome, method=[method], groups=groups)
        columns[outcome] = [_cell(row, method) for _, row in frame.iterrows()]
    return pd.DataFrame(columns, index=[CRITERIA[name] for name in criteria])


def beyond(table: pd.DataFrame, criterion: str, control: str, outcome: str) -> float:
    """Partial Pearson correlation of criterion and outcome given the control."""
    used = table[[criterion, control, outcome]].dropna()
    design = np.column_stack([np.ones(len(used)), used[control]])
    left = [
        used[name] - design @ np.linalg.lstsq(design, used[name], rcond=None)[0]
        for name in (criterion, outcome)
    ]
    return float(np.corrcoef(left)[0, 1])


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
    lines = ["Downstream accuracies (paired error: of a checkpoint's distance from the average)"]
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
    lines += [pd.DataFrame(rows).to_string(index=False), ""]
    lines += ["Criteria over checkpoints"]
    rows = []
    for suffix, gamma in zip(("", "_local"), gammas, strict=True):
        share = reliability(table[f"wbic{suffix}"], table[f"wbic_mcse{suffix}"])
        rows.append(
            {
                "localisation": f"{gamma:g}",
                "WBIC mean": f"{table[f'wbic{suffix}'].mean():.1f}",
                "sd": f"{table[f'wbic{suffix}'].std():.1f}",
                "MCSE": f"{np.sqrt((table[f'wbic_mcse{suffix}'] ** 2).mean()):.1f}",
                "reliability": f"{share:.2f}",
                "llc": f"{table[f'llc{suffix}'].min():.1f}..{table[f'llc{suffix}'].max():.1f}",
                "R-hat median, max": f"{table[f'r_hat{suffix}'].median():.3f}, "
                f"{table[f'r_hat{suffix}'].max():.3f}",
                "ESS median, min": f"{table[f'ess{suffix}'].median():.0f}, "
                f"{table[f'ess{suffix}'].min():.0f}",
            }
        )
    lines += [pd.DataFrame(rows).to_string(index=False), ""]
    for method in ("pearson", "spearman"):
        lines += [
            f"{method.capitalize()} correlation with accuracy, all checkpoints, 95 % intervals "
            "(bootstrap over checkpoints); the claim is negative for every criterion",
            correlation_table(table, outcomes, method).to_string(),
            "",
        ]
    lines += [
        "Pearson correlation inside configurations (across seeds, about each one's mean)",
        correlation_table(table, outcomes, "pearson", "configuration").to_string(),
        "",
        "Pearson correlation over configurations (means over seeds)",
        correlation_table(_means(table, outcomes), outcomes, "pearson").to_string(),
        "",
        "WBIC beyond validation loss: partial Pearson correlation given validation loss",
        "  ".join(f"{n}: {beyond(table, 'wbic', 'validation_loss', n):+.2f}" for n in outcomes),
        "",
        "The paper's Table 1 (ResNet-18, Pearson): full fine-tuning, few-shot",
    ]
    lines += [f"  {CRITERIA[k]:<34} {a:+.3f}  {b:+.3f}" for k, (a, b) in PUBLISHED.items()]
    lines += ["", *when_it_holds(table, outcomes), "Verdicts"]
    for name, meaning in outcomes.items():
        criteria = [criterion for criterion in CRITERIA if criterion in table]
        frame = correlations(table, criteria, name)
        lines += [f"- {name} ({meaning}): {verdict(frame, outcome=name)}"]
    return lines


def when_it_holds(table: pd.DataFrame, outcomes: Mapping[str, str]) -> list[str]:
    """For each form of the criterion: where its claimed sign is seen, reversed or undecided."""
    lines = ["When the criterion holds here (signs whose 95 % interval excludes zero; Pearson)"]
    for criterion in ("wbic", "held_out", "wbic_local", "held_out_local"):
        for where, groups in (("all checkpoints", None), ("inside each", "configuration")):
            found: dict[str, list[str]] = {"as claimed": [], "reversed": [], "undecided": []}
            for outcome in outcomes:
                row = correlations(
                    table, [criterion], outcome, method=["pearson"], groups=groups
                ).loc[criterion]
                seen, turned = row["pearson_high"] < 0, row["pearson_low"] > 0
                key = "as claimed" if seen else "reversed" if turned else "undecided"
                found[key].append(outcome)
            told = "; ".join(f"{key}: {', '.join(names) or '-'}" for key, names in found.items())
            lines.append(f"  {CRITERIA[criterion]:<36}{where:<17}{told}")
    return [*lines, ""]


def _means(table: pd.DataFrame, outcomes: Mapping[str, str]) -> pd.DataFrame:
    wanted = [*(name for name in CRITERIA if name in table), *outcomes]
    return table.groupby("configuration")[wanted].mean()
