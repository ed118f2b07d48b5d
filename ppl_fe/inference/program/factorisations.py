"""Matrices that cannot be factorised: NaN for that chain, in place of an error for all of them.

A covariance matrix that a program builds (of a Gaussian process, of correlations and scales) may
lose its positive definiteness to rounding at one chain's position. `torch.linalg.cholesky` then
raises an error for the whole batch of chains. Here the factor is NaN instead, so that the
log-density is not finite at that position alone: a start is drawn again, a chain is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Their last result is LAPACK's `info`, zero where the matrix has a factor.
FACTORISE = (
    aten.linalg_cholesky_ex.default,
    aten.linalg_inv_ex.default,
    aten.linalg_lu_factor_ex.default,
    aten.linalg_ldl_factor_ex.default,
    aten._linalg_solve_ex.default,
)


class NaNFactors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Give NaN for factors, inverses and solutions that do not exist, while this context lasts.

    Attributes:
        met: whether a matrix was factorised.

    Example:
        >>> with NaNFactors():
        ...     torch.linalg.cholesky(torch.tensor([[[4.0]], [[-4.0]]])).flatten()
        tensor([2., nan])
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.met = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is aten._linalg_check_errors.default:
            return None
        if func not in FACTORISE:
            return func(*args, **(kwargs or {}))
        self.met = True
        *found, info = func(*args, **(kwargs or {}))
        failed = info != 0
        return (*(_where(failed, value) for value in found), info)


def _where(failed: Any, value: Any) -> Any:
    """Put NaN into the factors of batch entries that failed; pivots are left as they are."""
    if not value.is_floating_point() and not value.is_complex():
        return value
    return value.masked_fill(failed[(...,) + (None,) * (value.dim() - failed.dim())], torch.nan)
