"""Which checkpoint to fine-tune, which parameters to update, and proof that the sampler converged."""

from __future__ import annotations

__version__ = "0.1.0"

from ppl_fe import models
from ppl_fe.inference.kernels import BAOAB, SGLD, Kernel
from ppl_fe.inference.sampling import sample

__all__ = ["BAOAB", "SGLD", "Kernel", "models", "sample"]
