"""The one error of runs that diverge: of a sampler, of a selection, of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class DivergedError(FloatingPointError):
    """A loss, a gradient, a weight or every chain is no longer finite; the message says where.

    Attributes:
        failed: of `sample`: chain -> when and where it became non-finite; empty elsewhere.
        scale_mean: of `select_parameters`: (D,) means of the scales over the draws kept before;
            None if there were none, and elsewhere.
        tuned: of `finetune`: the last good state, a `FinetuneResult`: the best one on the
            validation data, or without them the last whose loss was finite; None elsewhere.

    Example:
        >>> error = DivergedError("every chain became non-finite", failed={0: "step 3"})
        >>> isinstance(error, FloatingPointError), error.failed
        (True, {0: 'step 3'})
    """

    def __init__(
        self,
        message: str,
        *,
        failed: Mapping[int, str] | None = None,
        scale_mean: Tensor | None = None,
        tuned: Any = None,
    ) -> None:
        super().__init__(message)
        self.failed, self.scale_mean, self.tuned = dict(failed or {}), scale_mean, tuned
