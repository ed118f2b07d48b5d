"""A linear probe on the features, each example left out of its own prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_fe.free_energy.downstream.labels import as_numbers, classes_of, is_classes

# Of the mean squared feature: from almost least squares to almost the mean alone.
PENALTIES = tuple(10.0**k for k in range(-4, 5))


def ridge_predictions(features: Tensor, targets: Tensor, penalty: float | None = None) -> Tensor:
    """Predict each label by ridge regression on the others, in closed form.

    min_{w, c} Σ_i (y_i − c − wᵀf_i)² + λ‖w‖² has fitted values Hy with H = 11ᵀ/n + F̄(F̄ᵀF̄ + λI)⁻¹F̄ᵀ,
    F̄ the centred features; without example i its prediction is y_i − (y − Hy)_i/(1 − H_ii), exactly
    (Allen 1974, PRESS). Of classes the columns 0 and 1 are regressed on, and the largest wins.

    Args:
        features: (N, F).
        targets: (N,) integer classes, or (N, ...) numbers.
        penalty: λ; by default, of nine from 1e-4 to 1e4 mean squared features, the one of the
            smallest sum of squares left out.

    Returns:
        Predictions in the targets' shape.

    Example:
        >>> x = torch.linspace(-1, 1, 9)[:, None]
        >>> (ridge_predictions(x, 3 * x[:, 0] + 1, 1e-9) - (3 * x[:, 0] + 1)).abs().max() < 1e-6
        tensor(True)
    """
    numbers = as_numbers(targets)
    f = features.detach().double()
    centred = f - f.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    scale = float(f.square().sum(1).mean()) or 1.0
    penalties = [scale * share for share in PENALTIES] if penalty is None else [penalty]
    tried = [_left_out(u, s.square(), numbers, own) for own in penalties]
    best = min(tried, key=lambda left_out: float((numbers - left_out).square().sum()))
    if is_classes(targets):
        return classes_of(targets)[best.argmax(1)]
    return best.reshape(targets.shape)


def _left_out(u: Tensor, squares: Tensor, numbers: Tensor, penalty: float) -> Tensor:
    count = len(numbers)
    hat = 1 / count + (u * (squares / (squares + penalty))) @ u.T
    own = (1 - hat.diagonal()).clamp_min(torch.finfo(hat.dtype).eps)
    return numbers - (numbers - hat @ numbers) / own[:, None]
