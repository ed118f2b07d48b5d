"""The two architectures; neither treats training and evaluation differently."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class PatchConvolution(nn.Module):
    """A convolution whose stride equals its kernel, on images (B, H, W, channels).

    As a matrix product over patches, many networks side by side become one batched product, where
    `vmap` would turn `nn.Conv2d` into grouped convolutions, several times slower on a CPU.
    """

    def __init__(self, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(size * size * channels_in, channels_out)
        nn.init.kaiming_normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        batch, height, width, channels = images.shape
        rows, columns = height // self.size, width // self.size
        patches = images.reshape(batch, rows, self.size, columns, self.size, channels)
        patches = patches.transpose(2, 3).reshape(batch, rows, columns, -1)
        output: Tensor = self.linear(patches)
        return output


class PatchNetwork(nn.Module):
    """Patches of 4 × 4, then 2 × 2 twice, GELU between; the mean over what is left, a linear head.

    GELU keeps the loss smooth for the sampler; there is no normalisation whose state could drift.
    """

    def __init__(self, num_classes: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        sizes = (4, 2, 2)
        self.layers = nn.ModuleList(
            PatchConvolution(before, after, size)
            for (before, after), size in zip(pairwise((3, *widths)), sizes, strict=True)
        )
        self.activation = nn.GELU()
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> (B, classes)."""
        x = images.permute(0, 2, 3, 1)
        for layer in self.layers:
            x = self.activation(layer(x))
        logits: Tensor = self.head(x.mean((1, 2)))
        return logits


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with group norm about a skip connection (He et al. 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        groups = min(32, channels_out)
        self.first_norm = nn.GroupNorm(groups, channels_out)
        self.second_norm = nn.GroupNorm(groups, channels_out)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.skip = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.first_norm(self.first(x)))
        output: Tensor = self.activation(self.second_norm(self.second(y)) + self.skip(x))
        return output


class ResNet18(nn.Module):
    """ResNet-18 for 32 × 32 images (3 × 3 stem, no pooling) with group norm for batch norm."""

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.GroupNorm(min(32, width), width)
        self.activation = nn.ReLU()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = []
        for stage, (before, after) in enumerate(pairwise(widths)):
            stride = 1 if stage == 0 else 2
            blocks += [ResidualBlock(before, after, stride), ResidualBlock(after, after, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> (B, classes)."""
        x = self.blocks(self.activation(self.norm(self.stem(images))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
