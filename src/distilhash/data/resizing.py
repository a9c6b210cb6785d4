"""Antialiased resizing of uint8 images: one arithmetic, in machine code or, where that is not worth it, by NumPy.

As in PyTorch's kernel for uint8, to the last bit: an image is filtered along the rows, rounded to whole levels, and
filtered along the columns. The weights are integers: each filter is multiplied by the largest power of two that keeps
every weight below 2^15. Sums of such products are exact in whichever order they are added, so a matrix product in
floating point gives the same levels, and a hasher that runs without PyTorch sees what it was trained on.

Shapes: n images of a batch, H, W sides of an image in pixels, h, w sides of a window.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

INTERPOLATIONS = ("bilinear", "bicubic")

_MOST_BITS = 22  # of a weight's fraction, as in the kernel
_LARGEST_WEIGHT = 1 << 15
_EXACT_IN_FLOAT32 = 1 << 24
_BLOCK = 16  # output rows that share one product: a filter meets few input rows, and the others need no reading
WORTH = 200  # images that a process has resized by NumPy when it loads a compiler, which takes as long


def resized(images: NDArray[np.uint8], height: int, width: int, interpolation: str) -> NDArray[np.uint8]:
    """(n, H, W, 3) to (n, height, width, 3); the images themselves where they have these sides."""
    if images.shape[1:3] == (height, width):
        return images
    corners = np.zeros((len(images), 2), np.int64)
    return windows(images, (height, width), interpolation, corners, (height, width))


def windows(
    images: NDArray[np.uint8], sides: tuple[int, int], interpolation: str, corners: NDArray[np.int64],
    size: tuple[int, int],
) -> NDArray[np.uint8]:  # fmt: skip
    """Of each of ``images`` (n, H, W, 3), resized to ``sides``, the window of ``size`` (h, w) whose upper left pixel is
    at ``corners`` (n, 2), which lies inside: (n, h, w, 3).
    """
    found = np.empty((len(images), *size, 3), np.uint8)
    machine = machine_code(len(images)) if images.shape[1:3] != sides else None
    if machine:
        machine.resample(images, sides, interpolation, corners, found)
        return found
    images = by_numpy(images, *sides, interpolation)
    for window, image, (top, left) in zip(found, images, corners.tolist(), strict=True):
        window[:] = image[top : top + size[0], left : left + size[1]]
    return found


_resized: list[int] = []  # images of each call of this process


def machine_code(images: int) -> ModuleType | None:
    """What is compiled, for so many more images, or None where it is not yet worth it or cannot be had.

    Where PyTorch is loaded a second more does not matter, and networks there have a use for the compiler, too.
    """
    if "torch" not in sys.modules and sum(_resized) < WORTH:
        _resized.append(images)
        return None
    return _loaded()


@functools.cache  # a failure, too: Python would look for Numba again for every image
def _loaded() -> ModuleType | None:
    try:
        from distilhash.data import compiled
    except ImportError:  # also where Numba is older than it should be for this NumPy
        return None
    return compiled


def by_numpy(images: NDArray[np.uint8], height: int, width: int, interpolation: str) -> NDArray[np.uint8]:
    """(n, H, W, 3) to (n, height, width, 3)."""
    if images.shape[2] != width:
        images = _columns(images.transpose(0, 2, 1, 3), width, interpolation).transpose(0, 2, 1, 3)
    if images.shape[1] != height:
        images = _columns(images, height, interpolation)
    return images


def _columns(images: NDArray[np.uint8], size: int, interpolation: str) -> NDArray[np.uint8]:
    """(n, H, W, 3) to (n, size, W, 3)."""
    count, height, width, _ = images.shape
    weights, bits = _matrix(height, size, interpolation)
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
def _matrix(length: int, size: int, interpolation: str) -> tuple[NDArray[np.floating], int]:
    """(size, length) whole weights, in a type whose sums of them are exact, and the bits of their fraction."""
    first, weights, bits = filters(length, size, interpolation == "bicubic")
    whole = np.zeros((size, length))
    whole[np.arange(size)[:, None], first[:, None] + np.arange(weights.shape[1])] = weights
    largest = 255 * np.abs(whole).sum(axis=1).max() + (1 << bits >> 1)
    return whole.astype(np.float32 if largest < _EXACT_IN_FLOAT32 else np.float64), bits


def filters(length: int, size: int, cubic: bool) -> tuple[NDArray[np.int64], NDArray[np.int16], int]:
    """What resizes ``length`` pixels to ``size``, each to a sum of neighbours: the first of them (size,), their weights
    (size, taps), and the bits of the weights' fraction. Plain loops, which ``compiled`` compiles.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    support = (2.0 if cubic else 1.0) * stretch
    first, taps = np.empty(size, np.int64), 0
    for i in range(size):
        centre = scale * (i + 0.5)
        first[i] = max(int(centre - support + 0.5), 0)
        taps = max(taps, min(int(centre + support + 0.5), length) - first[i])
    real = np.zeros((size, taps))
    largest = 0.0
    for i in range(size):
        centre = scale * (i + 0.5)
        low, high = first[i], min(int(centre + support + 0.5), length)
        first[i] = min(low, length - taps)
        total = 0.0
        for j in range(low, high):
            t = abs(j - centre + 0.5) / stretch
            if not cubic:  # a triangle
                tap = max(0.0, 1.0 - t)
            elif t < 1:  # the cubic with a = -1/2
                tap = (1.5 * t - 2.5) * t * t + 1
            else:
                tap = ((t - 5) * t + 8) * t * -0.5 + 2 if t < 2 else 0.0
            real[i, j - first[i]] = tap
            total += tap
        for k in range(taps):
            real[i, k] /= total
            largest = max(largest, real[i, k])
    bits = 0
    while bits < _MOST_BITS and int(0.5 + largest * (1 << (bits + 1))) < _LARGEST_WEIGHT:
        bits += 1
    weights = np.empty((size, taps), np.int16)
    for i in range(size):
        for k in range(taps):
            weights[i, k] = int(real[i, k] * (1 << bits) + (0.5 if real[i, k] >= 0 else -0.5))
    return first, weights, bits
