"""The demonstration's data: pretraining on the digits 0-4, and two kinds of downstream task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

Data = tuple[Tensor, Tensor]
NUM_CLASSES = 5


@dataclass(frozen=True)
class Task:
    """A downstream task: the pool of images that few-shot episodes draw from.

    Attributes:
        images: (N, ...).
        labels: 0, 1, ... (N,).
        noise: standard deviation of Gaussian noise that every episode adds afresh to every pixel.
    """

    images: Tensor
    labels: Tensor
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise={self.noise} is a standard deviation: give 0 or more")


@dataclass(frozen=True)
class Digits:
    """Images as rows of 64 numbers in [0, 1], with labels 0-4 throughout.

    Attributes:
        training: 400 images of the digits 0-4, and their labels.
        validation: 150 others.
        tasks: "pixel noise" holds the 351 remaining images of 0-4, "new classes" the 896 images
            of 5-9, relabelled 0-4. No downstream image was seen in pretraining.
    """

    training: Data
    validation: Data
    tasks: dict[str, Task]


def embedded_digits(*, noise: float = 0.5, seed: int = 0) -> Digits:
    """Load scikit-learn's 8 × 8 digits, divided by their largest value, and split them.

    The pixel noise keeps the theory's assumption plausible: noisy images of the same digits are
    covered by the pretraining density up to a factor. New classes lie off its support.

    Args:
        noise: of the task "pixel noise", in units of the full grey scale. The default, 0.5, makes
            the two tasks about equally hard.
        seed: of the split, 0 by default.

    Returns:
        The data, as float32 images and int64 labels.

    Raises:
        ValueError: ``noise`` is negative.

    Example:
        >>> digits = embedded_digits()
        >>> len(digits.training[0]), len(digits.validation[0])
        (400, 150)
        >>> {name: len(task.images) for name, task in digits.tasks.items()}
        {'pixel noise': 351, 'new classes': 896}
    """
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16.0, dtype=torch.float32)
    y = torch.tensor(labels, dtype=torch.int64)
    new = torch.nonzero(y >= NUM_CLASSES).squeeze(1)
    old = torch.nonzero(y < NUM_CLASSES).squeeze(1)
    old = old[torch.randperm(len(old), generator=torch.Generator().manual_seed(seed))]
    training, validation, rest = old[:400], old[400:550], old[550:]
    return Digits(
        training=(x[training], y[training]),
        validation=(x[validation], y[validation]),
        tasks={
            "pixel noise": Task(x[rest], y[rest], noise),
            "new classes": Task(x[new], y[new] - NUM_CLASSES),
        },
    )
