"""SciPy's L-BFGS-B on one BLAS thread.

Its vectors are short and its steps many: threads that wait for each other, where another process
has one of the cores, take far longer than one thread alone
(findings/scipy_l_bfgs_b_waits_for_threads.sh).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float64]


def l_bfgs(
    function: Callable[[Array], tuple[float, Array]],
    start: Array,
    *,
    most_iterations: int,
    least_fall: float,
    least_slope: float,
) -> Any:
    """Minimise a smooth function.

    Args:
        function: of a position (D,), its value and gradient (D,).
        start: (D,).
        most_iterations: after which the search ends.
        least_fall: share of the value, below which a step's fall ends it.
        least_slope: largest entry of the gradient, below which it ends.

    Returns:
        SciPy's `OptimizeResult`, with `x`, `fun`, `jac` and `hess_inv`.

    Example:
        >>> found = l_bfgs(lambda x: (float(x @ x), 2 * x), np.ones(2),
        ...                most_iterations=10, least_fall=1e-12, least_slope=1e-9)
        >>> bool(abs(found.x).max() < 1e-8)
        True
    """
    options: Any = {"maxiter": most_iterations, "ftol": least_fall, "gtol": least_slope}
    with _controller().limit(limits=1, user_api="blas"):
        return minimize(function, start, method="L-BFGS-B", jac=True, options=options)


@cache
def _controller() -> ThreadpoolController:
    """Find the BLAS libraries of this process, which takes milliseconds, once."""
    return ThreadpoolController()
