"""The demonstration's data: pretraining on the digits 0-4, and two kinds of downstream task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

Data = tuple[Tensor, Tensor]
NUM_CLASSES = 5


@dataclass(frozen=True)
class Digits:
    """Images as rows of 64 numbers in [0, 1], with labels 0-4 throughout.

    Attributes:
        training: 500 images of the digits 0-4.
        validation: 150 others.
        tasks: name of the downstream task -> the images its episodes draw from. "pixel noise"
            holds the 251 remaining images of 0-4, "new classes" the 896 images of 5-9 (relabelled
            0-4). No downstream image was seen in pretraining.
    """

    training: Data
    validation: Data
    tasks: dict[str, Data]


def embedded_digits(*, noise: float = 0.5, seed: int = 0) -> Digits:
    """scikit-learn's 8 × 8 digits, divided by their largest value and split.

    The pixel noise keeps the theory's assumption plausible: noisy images of the same digits are
    covered by the pretraining density up to a factor. New classes lie off its support.

    Args:
        noise: standard deviation of the Gaussian noise, in units of the full grey scale.
        seed: of the split and of the noise.

    Returns:
        The data, as float32 images and int64 labels.

    Raises:
        ValueError: if ``noise`` is negative.

    Example:
        >>> digits = embedded_digits()
        >>> [len(x) for x, _ in (digits.training, digits.validation, *digits.tasks.values())]
        [500, 150, 251, 896]
    """
    if noise < 0:
        raise ValueError(f"noise={noise} is a standard deviation and cannot be negative")
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16.0, dtype=torch.float32)
    y = torch.tensor(labels, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    old = torch.nonzero(y < NUM_CLASSES).squeeze(1)
    new = torch.nonzero(y >= NUM_CLASSES).squeeze(1)
    old = old[torch.randperm(len(old), generator=generator)]
    training, validation, rest = old[:500], old[500:650], old[650:]
    noisy = x[rest] + noise * torch.randn(x[rest].shape, generator=generator)
    return Digits(
        training=(x[training], y[training]),
        validation=(x[validation], y[validation]),
        tasks={"pixel noise": (noisy, y[rest]), "new classes": (x[new], y[new] - NUM_CLASSES)},
    )
