"""Can I believe the sampler? A verdict, and the checks behind it."""

from __future__ import annotations

from ppl_fe.diagnostics.diagnose_run import diagnose, summary
from ppl_fe.diagnostics.diagnosis import Check, Diagnosis
from ppl_fe.diagnostics.pointwise import add_log_likelihood
from ppl_fe.diagnostics.stein import (
    SteinTest,
    kernel_stein_discrepancy,
    stein_check,
    stein_test,
)

__all__ = [
    "Check",
    "Diagnosis",
    "SteinTest",
    "add_log_likelihood",
    "diagnose",
    "kernel_stein_discrepancy",
    "stein_check",
    "stein_test",
    "summary",
]
