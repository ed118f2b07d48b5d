"""CIFAR-FS (Bertinetto et al. 2019): CIFAR-100 with 64 meta-train and 20 meta-test classes."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Split:
    """How many classes and images the experiment takes.

    Attributes:
        classes: pretraining classes, of the 64.
        training, held_out, fresh: images of each: to pretrain on, for the held-out criterion, and
            for the downstream tasks on the same classes.
        downstream: images of each meta-test class.
    """

    classes: int
    training: int
    held_out: int
    fresh: int
    downstream: int


@dataclass(frozen=True)
class Images:
    """Standardised by the pretraining images' mean and deviation; labels count from 0.

    Attributes:
        training, held_out, fresh: of the pretraining classes, with no image in common.
        downstream: of the meta-test classes.
        num_classes: pretraining classes.
    """

    training: Data
    held_out: Data
    fresh: Data
    downstream: Data
    num_classes: int

    def to(self, device: torch.device) -> Images:
        """The same images elsewhere."""

        def moved(data: Data) -> Data:
            return data[0].to(device), data[1].to(device)

        return Images(
            moved(self.training),
            moved(self.held_out),
            moved(self.fresh),
            moved(self.downstream),
            self.num_classes,
        )


def asked_images(folder: Path, split: Split, seed: int, *, random: bool) -> Images | None:
    """Read the images of the folder, or make random ones; where it has none say so: None."""
    if random:
        return random_images(split, seed)
    if not (folder / "train64.npz").exists():
        print(f"skipped: no CIFAR-FS under {folder}; give its folder as --data")
        return None
    return read_images(folder, split, seed)


def read_images(folder: Path, split: Split, seed: int) -> Images:
    """Decode, choose classes and images by the seed, standardise.

    Raises:
        FileNotFoundError: the folder lacks the two packed files.
    """
    load = runpy.run_path(str(folder.parent / "read_packed.py"))["load"]
    rng = np.random.default_rng(seed)
    each = split.training + split.held_out + split.fresh
    images, labels = _chosen(load, folder / "train64.npz", split.classes, each, rng)
    ends = [split.training, split.training + split.held_out]
    training, held_out, fresh = (
        (part_images.flatten(0, 1), part_labels.flatten())
        for part_images, part_labels in zip(
            images.tensor_split(ends, 1), labels.tensor_split(ends, 1), strict=True
        )
    )
    others, their_labels = _chosen(load, folder / "test20.npz", 20, split.downstream, rng)
    return _standardised(
        training, held_out, fresh, (others.flatten(0, 1), their_labels.flatten()), split.classes
    )


def random_images(split: Split, seed: int) -> Images:
    """Noise about one random image a class, in place of the real data."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(centres: Tensor, number: int) -> Data:
        labels = torch.arange(len(centres)).repeat_interleave(number)
        noise = torch.randn((len(labels), *centres.shape[1:]), generator=generator)
        return centres[labels] + noise, labels

    own, other = (torch.randn((k, 3, 32, 32), generator=generator) for k in (split.classes, 20))
    return _standardised(
        noisy(own, split.training),
        noisy(own, split.held_out),
        noisy(own, split.fresh),
        noisy(other, split.downstream),
        split.classes,
    )


def _chosen(
    load: Any, path: Path, num_classes: int, number: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Images (classes, number, 3, 32, 32) in [0, 1] and labels (classes, number)."""
    fine: NDArray[Any] = np.load(path)["fine"]
    classes = rng.permutation(np.unique(fine))[:num_classes]
    rows = np.stack([rng.permutation(np.flatnonzero(fine == c))[:number] for c in classes])
    pixels, _ = load(path, rows.ravel())
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous() / 255
    labels = torch.arange(len(classes))[:, None].expand(-1, rows.shape[1])
    return images.view(*rows.shape, 3, 32, 32), labels


def _standardised(
    training: Data, held_out: Data, fresh: Data, downstream: Data, num_classes: int
) -> Images:
    mean = training[0].mean((0, 2, 3), keepdim=True)
    deviation = training[0].std((0, 2, 3), keepdim=True)

    def standard(data: Data) -> Data:
        return (data[0] - mean) / deviation, data[1]

    return Images(
        standard(training), standard(held_out), standard(fresh), standard(downstream), num_classes
    )
