"""Hashes against the published algorithm one word at a time, and the properties that resumption rests on."""

from __future__ import annotations

import numpy as np
import pytest

from distilhash.data.order import Batches, epoch_order, random64, shuffled
from distilhash.errors import DistilhashError

MASK = (1 << 64) - 1


def mix(z: int) -> int:
    """SplitMix64's finaliser in Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_finaliser_is_splitmix64() -> None:
    # The first outputs of the published generator seeded with 0 are mix(golden), mix(2 golden).
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    golden = 0x9E3779B97F4A7C15
    for key in [(), (5,), (5, 2, -1), (2**70, 3)]:
        state = 0
        for part in key:
            state = mix(((state ^ (part & MASK)) + golden) & MASK)
        expected = [mix(mix((i + golden) & MASK) ^ state) for i in range(50)]
        assert random64(np.arange(50), *key).tolist() == expected


def test_words_are_uniform_and_do_not_repeat_between_keys() -> None:
    words = np.stack([random64(np.arange(20_000), seed, 1, view) for seed in range(3) for view in range(3)])
    assert len(np.unique(words)) == words.size
    share = (words >> np.uint64(60)).astype(int)
    counts = np.bincount(share.ravel(), minlength=16)
    assert np.abs(counts / words.size * 16 - 1).max() < 0.05
    bits = np.unpackbits(words.view(np.uint8), axis=1).astype(np.float64)
    assert np.abs(np.corrcoef(bits) - np.eye(9)).max() < 0.01


def test_epoch_order_is_a_permutation_by_epoch_and_seed() -> None:
    orders = [epoch_order(500, epoch, seed) for epoch in range(3) for seed in range(3)]
    assert all(np.array_equal(np.sort(order), np.arange(500)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 9
    assert np.array_equal(epoch_order(500, 2, 1), epoch_order(500, 2, 1))
    # Every image comes in every part of an epoch equally often.
    means = np.mean([np.argsort(epoch_order(50, epoch, 0)) for epoch in range(2000)], axis=0)
    assert np.abs(means - 24.5).max() < 1.5


def test_shuffled_does_not_see_the_order_it_is_given() -> None:
    ids = np.array([9, 4, 7, 100, 3])
    assert shuffled(ids, 1).tolist() == shuffled(ids[::-1], 1).tolist()
    assert sorted(shuffled(ids, 1).tolist()) == [3, 4, 7, 9, 100]


def test_an_epoch_shows_whole_batches_of_different_images_and_nothing_but_epoch_and_step_matters() -> None:
    batches = Batches(count=103, batch_size=10, seed=4)
    assert batches.steps == 10
    steps = [batches.positions(3, step) for step in range(batches.steps)]
    assert all(len(positions) == 10 for positions in steps)
    assert len(np.unique(np.concatenate(steps))) == 100
    assert np.array_equal(Batches(count=103, batch_size=10, seed=4).positions(3, 7), steps[7])
    assert np.concatenate(steps).tolist() == epoch_order(103, 3, 4)[:100].tolist()
    assert sorted(Batches(count=3, batch_size=8, seed=0).positions(0, 0).tolist()) == [0, 1, 2]


def test_an_empty_epoch_is_refused() -> None:
    for count, size in ((0, 1), (1, 0)):
        with pytest.raises(DistilhashError):
            Batches(count=count, batch_size=size, seed=0)
