"""Randomness as a function of counters: splits, views and the order of images depend on numbers, not on history.

A value is a hash of (seed, purpose, epoch or view, image id), so it is the same for any batch size, any number of
workers, any NumPy version, and after a resumption. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014, section 4), which is a bijection of 64-bit words: equal
keys and different ids never collide.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

from distilhash.errors import DistilhashError

# The purposes: one hash never serves two of them.
VIEWS, ORDER, SPLITS, CALIBRATION, AUGMENT = 1, 2, 3, 4, 5

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def random64(ids: NDArray[np.int64], *key: int) -> NDArray[np.uint64]:
    """One uniform 64-bit word for each id, under a key of integers (seed, purpose, ...)."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix((state ^ np.uint64(part & _MASK)) + _GOLDEN)
    return _mix(_mix(np.asarray(ids).astype(np.uint64) + _GOLDEN) ^ state)


def uniform(ids: NDArray[np.int64], *key: int) -> NDArray[np.float64]:
    """One number in [0, 1) for each id: the upper 53 bits of random64() fill it."""
    numbers: NDArray[np.float64] = (random64(ids, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def shuffled(ids: NDArray[np.int64], *key: int) -> NDArray[np.int64]:
    """The ids in a random order that the key decides; the order in which they are given does not matter."""
    ids = np.sort(np.asarray(ids, np.int64))
    return ids[np.argsort(random64(ids, *key), kind="stable")]


@functools.lru_cache(maxsize=4)  # every step of an epoch asks for it
def epoch_order(count: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """The order of 0..count-1 in one epoch, read-only."""
    order = shuffled(np.arange(count), seed, ORDER, epoch)
    order.flags.writeable = False
    return order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of every epoch of a training run; (epoch, step) is all that a resumption needs to know.

    The rest of an epoch that fills no batch is left out, as batch statistics of a few images are noise; an epoch
    shorter than one batch is one batch.
    """

    count: int  # training images
    batch_size: int  # images a step
    seed: int

    def __post_init__(self) -> None:
        """Refuse an empty epoch."""
        if self.count < 1 or self.batch_size < 1:
            got = f"{self.count} images, {self.batch_size} a step"
            raise DistilhashError("an epoch needs at least one image and one image a step", got)

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return max(1, self.count // self.batch_size)

    def positions(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Positions in 0..count-1 of the images of one step of an epoch."""
        return epoch_order(self.count, epoch, self.seed)[step * self.batch_size : (step + 1) * self.batch_size]
