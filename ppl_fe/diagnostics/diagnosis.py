"""A verdict on a run: checks, each with its value, its threshold and what to change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape

import numpy as np
import pandas as pd

COLUMNS = ["check", "value", "threshold", "passed", "advice"]


@dataclass(frozen=True)
class Check:
    """One question put to a run.

    Attributes:
        name: of the check.
        value: what was found.
        threshold: where the check fails.
        passed: whether the value is on the right side; never of a value that is not a number.
        advice: one sentence that names the argument to change; empty where the check passed.
        noted: the value is on the wrong side, of something that this run is not for: the check
            passed with a note, which is its advice.
    """

    name: str
    value: float
    threshold: float
    passed: bool
    advice: str = ""
    noted: bool = False

    @classmethod
    def below(cls, name: str, value: float, threshold: float, advice: str) -> Check:
        """Make a check that passes where the value is below the threshold.

        Example:
            >>> Check.below("r_hat", float("nan"), 1.01, "raise num_chains").passed
            False
        """
        passed = bool(value < threshold)
        return cls(name, float(value), float(threshold), passed, "" if passed else advice)

    @classmethod
    def above(cls, name: str, value: float, threshold: float, advice: str) -> Check:
        """Make a check that passes where the value is above the threshold."""
        passed = bool(value > threshold)
        return cls(name, float(value), float(threshold), passed, "" if passed else advice)

    @classmethod
    def within(cls, name: str, value: float, center: float, margin: float, advice: str) -> Check:
        """Make a check that passes within `margin` of `center`; the threshold is the nearer end."""
        if value < center:
            return cls.above(name, value, center - margin, advice)
        return cls.below(name, value, center + margin, advice)

    def as_note(self) -> Check:
        """Make a check that never fails: what it found becomes a note.

        Example:
            >>> check = Check.below("coordinate_r_hat", 1.3, 1.01, "raise num_samples").as_note()
            >>> check.passed, check.noted, check.advice
            (True, True, 'raise num_samples')
        """
        return replace(self, passed=True, noted=not self.passed)

    @property
    def bound(self) -> str:
        """Say what would pass: "< 1.01" or "> 400"."""
        less = (self.value < self.threshold) == (self.passed and not self.noted)
        sign = "" if np.isnan(self.value) else "< " if less else "> "
        return sign + _short(self.threshold)


@dataclass(frozen=True)
class Diagnosis:
    """What `fe.diagnose` returns; prints as a table.

    Attributes:
        checks: causes before what they bring about; the first that failed is to be acted on first.

    Example:
        >>> verdict = Diagnosis((
        ...     Check.below("r_hat", 1.003, 1.01, "raise num_samples"),
        ...     Check.above("ess_bulk", 120.0, 400.0, "raise num_samples"),
        ... ))
        >>> print(verdict)
        Diagnosis: FAIL, 1 of 2 checks
          r_hat     1.003  < 1.01  pass
          ess_bulk    120   > 400  FAIL  raise num_samples
        >>> verdict.passed, verdict.failures
        (False, ['ess_bulk'])
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Say whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[str]:
        """Name the checks that failed, the one to act on first."""
        return [check.name for check in self.checks if not check.passed]

    @property
    def table(self) -> pd.DataFrame:
        """Tabulate the checks, a row each: check, value, threshold, passed, advice."""
        rows = [
            (check.name, check.value, check.threshold, check.passed, check.advice)
            for check in self.checks
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def to_dataframe(self) -> pd.DataFrame:
        """Give the table."""
        return self.table

    def _title(self) -> str:
        if self.passed:
            notes = sum(check.noted for check in self.checks)
            said = f", {notes} with a note" if notes else ""
            return f"Diagnosis: pass, all {len(self.checks)} checks{said}"
        return f"Diagnosis: FAIL, {len(self.failures)} of {len(self.checks)} checks"

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        return [(c.name, _short(c.value), c.bound, _outcome(c), c.advice) for c in self.checks]

    def __str__(self) -> str:
        rows = self._rows()
        names, values, bounds = (max((len(row[k]) for row in rows), default=0) for k in range(3))
        lines = [
            f"  {name:<{names}}  {value:>{values}}  {bound:>{bounds}}  {said}  {advice}".rstrip()
            for name, value, bound, said, advice in rows
        ]
        return "\n".join([self._title(), *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{name}</th>" for name in COLUMNS)
        body = "".join(
            f"<tr><th>{escape(row[0])}</th>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self._rows()
        )
        return f"<table><caption>{self._title()}</caption><tr>{heads}</tr>{body}</table>"


def _outcome(check: Check) -> str:
    if check.noted:
        return "note"
    return "pass" if check.passed else "FAIL"


def _short(value: float) -> str:
    """Print four digits, without an exponent where the number is of everyday size.

    Example:
        >>> [_short(value) for value in (1.00314, 412.7, 23456.0, float("nan"))]
        ['1.003', '412.7', '23456', 'nan']
    """
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
