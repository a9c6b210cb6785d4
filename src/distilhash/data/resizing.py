"""Antialiased resizing of uint8 images: one arithmetic, by PyTorch's kernel or, where that is not loaded, by NumPy.

The kernel filters along the rows, rounds to whole levels, and filters along the columns. Its weights are integers: each
filter is multiplied by the largest power of two that keeps every weight below 2^15. Sums of such products are exact in
whichever order they are added, so a matrix product in floating point gives the same levels, to the last bit, and a
hasher that runs without PyTorch sees what it was trained on.

Shapes: n images of a batch, H, W sides of an image in pixels.
"""

from __future__ import annotations

import functools
import sys

import numpy as np
from numpy.typing import NDArray

INTERPOLATIONS = ("bilinear", "bicubic")

_MOST_BITS = 22  # of a weight's fraction, as in the kernel
_LARGEST_WEIGHT = 1 << 15
_EXACT_IN_FLOAT32 = 1 << 24
_BLOCK = 16  # output rows that share one product: a filter meets few input rows, and the others need no reading


def resized(images: NDArray[np.uint8], height: int, width: int, interpolation: str) -> NDArray[np.uint8]:
    """(n, H, W, 3) to (n, height, width, 3)."""
    if images.shape[1:3] == (height, width):
        return images
    if "torch" in sys.modules:
        return _by_torch(images, height, width, interpolation)
    return by_numpy(images, height, width, interpolation)


def by_numpy(images: NDArray[np.uint8], height: int, width: int, interpolation: str) -> NDArray[np.uint8]:
    """The same without PyTorch."""
    if images.shape[2] != width:
        images = _columns(images.transpose(0, 2, 1, 3), width, interpolation).transpose(0, 2, 1, 3)
    if images.shape[1] != height:
        images = _columns(images, height, interpolation)
    return np.ascontiguousarray(images)


def _by_torch(images: NDArray[np.uint8], height: int, width: int, interpolation: str) -> NDArray[np.uint8]:
    import torch
    import torch.nn.functional as F

    images = np.ascontiguousarray(images)
    if not images.flags.writeable:  # PyTorch warns of undefined behaviour
        images = images.copy()
    found = F.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2), size=(height, width), mode=interpolation, antialias=True
    )
    array: NDArray[np.uint8] = found.permute(0, 2, 3, 1).numpy()
    return array


def _columns(images: NDArray[np.uint8], size: int, interpolation: str) -> NDArray[np.uint8]:
    """(n, H, W, 3) to (n, size, W, 3)."""
    count, height, width, _ = images.shape
    weights, bits = _filters(height, size, interpolation)
    rows = np.ascontiguousarray(images).reshape(count, height, width * 3)
    found = np.empty((count, size, width * 3), np.uint8)
    for start in range(0, size, _BLOCK):
        block = weights[start : start + _BLOCK]
        met = np.flatnonzero(block.any(axis=0))
        low, high = int(met[0]), int(met[-1]) + 1
        sums = block[:, low:high] @ rows[:, low:high].astype(weights.dtype)
        sums += 1 << bits >> 1
        sums *= 2.0**-bits
        np.clip(np.floor(sums, out=sums), 0, 255, out=sums)
        found[:, start : start + _BLOCK] = sums
    return found.reshape(count, size, width, 3)


@functools.lru_cache(maxsize=64)
def _filters(length: int, size: int, interpolation: str) -> tuple[NDArray[np.floating], int]:
    """(size, length) whole weights, and the bits of their fraction."""
    cubic = interpolation == "bicubic"
    scale = length / size
    stretch = max(scale, 1.0)
    support = (2.0 if cubic else 1.0) * stretch
    real = np.zeros((size, length))
    for i in range(size):
        centre = scale * (i + 0.5)
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length)
        taps = [_tap(abs(j - centre + 0.5) / stretch, cubic) for j in range(low, high)]
        real[i, low:high] = np.array(taps) / sum(taps)
    bits = 0
    while bits < _MOST_BITS and int(0.5 + real.max() * (1 << (bits + 1))) < _LARGEST_WEIGHT:
        bits += 1
    whole = np.trunc(real * (1 << bits) + np.copysign(0.5, real))
    largest = 255 * np.abs(whole).sum(axis=1).max() + (1 << bits >> 1)
    return whole.astype(np.float32 if largest < _EXACT_IN_FLOAT32 else np.float64), bits


def _tap(t: float, cubic: bool) -> float:
    """The filter's height at a distance: a triangle, or the cubic with a = -1/2."""
    if not cubic:
        return max(0.0, 1.0 - t)
    if t < 1:
        return (1.5 * t - 2.5) * t * t + 1
    return ((t - 5) * t + 8) * t * -0.5 + 2 if t < 2 else 0.0
