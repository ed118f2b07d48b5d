"""Standard normals as a function of a key and a counter, inside the compiled step.

A generator with a state draws number after number, 4 ns each, into memory that the step then reads
again. A function of (key, i) has no state (Salmon, Moraes, Dror & Shaw 2011), so that the compiler
makes the i-th numbers in vector registers where they are used. Here it is the generator
SplitMix (Steele, Lea & Flood 2014) at 32 bits: an arithmetic progression through a mixing of the
integers, its start and its odd increment the key's. A second mixing, with the key's last word
between, gives the other half of a pair of normals (Box & Muller 1958).

The mixing is Wellons's `triple32`, whose every output bit changes with probability 0.5 to within
1e-3 when any input bit does. It is a bijection: within one key no first word comes twice. Every
step and block has keys of its own, drawn by a generator with a state, so that a counter never runs
beyond a block, and two blocks' progressions meet no oftener than random words do. This is enough
for the noise of a sampler, and not for secrets. The constants are in the public domain
(https://github.com/skeeto/hash-prospector).

Papers: Parallel random numbers: as easy as 1, 2, 3, SC 2011; Fast splittable pseudorandom number
generators, OOPSLA 2014; A note on the generation of random normal deviates, Annals of Mathematical
Statistics 1958.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

KEYS = 3  # words of 32 bits a key
_MULTIPLIERS = (-312814405, -1404298415, 830770091)  # 0xed5ad4bb, 0xac4c1b51, 0x31848bab
_SHIFTS = (17, 11, 15, 14)


def _fitted(function: Callable[[Any], Any], start: float, stop: float) -> list[float]:
    """Fit a polynomial of degree 7 between the two; its highest coefficient comes first."""
    series = Chebyshev.interpolate(function, 7, domain=[start, stop])
    found: list[float] = series.convert(kind=Polynomial).coef[::-1].tolist()
    return found


_COSINE = _fitted(lambda square: np.cos(np.pi * np.sqrt(square)), 0, 1)
_SINE = _fitted(lambda square: np.pi * np.sinc(np.sqrt(square)), 0, 1)
# Of a number as 2^exponent times a factor between √½ and √2, the factor's part.
_LOGARITHM = _fitted(lambda over: -2 * np.log1p(over) / over, 0.5**0.5 - 1, 2**0.5 - 1)
_HALF_ROOT = 0x3F3504F3  # √½ as float32's bits; its exponent begins at bit 23


def draw_keys(keys: Tensor, generator: torch.Generator) -> Tensor:
    """Fill keys (..., KEYS), int32, in place with random words."""
    return keys.random_(-(2**31), 2**31, generator=generator)


def normals(key: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Make two independent vectors (size,) of standard normals, float32, of magnitude up to 5.9.

    Args:
        key: (KEYS,) int32, random words.
        size: number of normals in each, at most 2³¹; the counter runs from 0.

    Example:
        >>> key = torch.tensor([1, 2, 3], dtype=torch.int32)
        >>> one, other = normals(key, 100_000)
        >>> bool(one.mean().abs() < 0.02), bool((one * other).mean().abs() < 0.02)
        (True, True)
    """
    counter = torch.arange(size, dtype=torch.int32, device=key.device)
    first = mixed(counter * (2 * key[1] + 1) + key[0])
    second = mixed(first + key[2])
    # 24 bits fill a float's mantissa; the half keeps zero away from the logarithm.
    radius = _minus_twice_log((_upper(first, 8).to(torch.float32) + 0.5) * 2.0**-24).sqrt()
    cosine, sine = _on_circle(second.to(torch.float32) * 2.0**-31)
    return radius * cosine, radius * sine


def _minus_twice_log(x: Tensor) -> Tensor:
    """Compute −2 log x of float32 between 1e-38 and 1, to 5e-7 of itself; never negative."""
    bits = x.view(torch.int32)
    exponent = (bits - _HALF_ROOT) >> 23
    over = (bits - (exponent << 23)).view(torch.float32) - 1
    return exponent.to(torch.float32) * (-2 * log(2)) + over * _polynomial(_LOGARITHM, over)


def _on_circle(turn: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cos πt and sin πt for −1 ≤ t ≤ 1, to 1e-6.

    Library functions take any angle, and spend most of their time on reducing it to such a range.
    """
    square = turn * turn
    return _polynomial(_COSINE, square), turn * _polynomial(_SINE, square)


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    """Evaluate a polynomial by Horner's scheme; the highest power comes first."""
    result = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        result = result * x + coefficient
    return result


def mixed(words: Tensor) -> Tensor:
    """Mix each int32 by triple32, modulo 2³²."""
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        words = (words ^ _upper(words, shift)) * multiplier
    return words ^ _upper(words, _SHIFTS[-1])


def _upper(words: Tensor, shift: int) -> Tensor:
    """Shift right as unsigned numbers; torch's own shift copies the sign."""
    return (words >> shift) & ((1 << (32 - shift)) - 1)
