"""The NumPy arithmetic of resizing and normalising against PyTorch's, to the last bit."""

import numpy as np
import pytest
import torch

from distilhash.config import InputConfig
from distilhash.data.preprocess import FRAMINGS, Preprocess
from distilhash.data.resizing import INTERPOLATIONS, by_numpy, resized

RNG = np.random.default_rng(0)
SIDES = [(1, 1, 5, 7), (300, 20, 16, 64), (64, 64, 224, 224), (7, 90, 7, 31), (31, 8, 60, 8), (640, 480, 64, 48)]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("sides", SIDES + [tuple(RNG.integers(1, 120, 4)) for _ in range(20)])
def test_numpy_gives_the_levels_of_the_kernel(interpolation, sides):
    height, width, to_height, to_width = (int(side) for side in sides)
    noise = RNG.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    for images in (noise, (noise > 127).astype(np.uint8) * 255):  # overshoot of the cubic is clipped
        expected = resized(images, to_height, to_width, interpolation)
        assert expected.shape == (2, to_height, to_width, 3)
        assert np.array_equal(by_numpy(images, to_height, to_width, interpolation), expected)


def test_strong_shrinking_leaves_float32():
    """Weights so fine that their sums pass 2^24 are added in float64."""
    images = RNG.integers(250, 256, (1, 9000, 3, 3), dtype=np.uint8)
    assert np.array_equal(by_numpy(images, 2, 3, "bicubic"), resized(images, 2, 3, "bicubic"))


@pytest.mark.parametrize("framing", FRAMINGS)
def test_planes_are_the_tensor(framing):
    pixels = Preprocess(InputConfig(size=24, framing=framing))
    images = [RNG.integers(0, 256, (*sides, 3), dtype=np.uint8) for sides in ((40, 31), (24, 24), (9, 70))]
    planes = pixels.planes(pixels.framed(images))
    assert planes.flags.c_contiguous
    assert torch.equal(torch.from_numpy(planes), pixels(images))
    assert pixels.planes(pixels.framed([])).shape == (0, 3, 24, 24)
