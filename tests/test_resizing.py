"""Resizing and normalising in machine code and by NumPy against PyTorch's, to the last bit."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distilhash.config import InputConfig
from distilhash.data import resizing
from distilhash.data import transforms as preprocess
from distilhash.data.compiled import resample
from distilhash.data.resizing import INTERPOLATIONS, by_numpy, resized, windows
from distilhash.data.transforms import CROP_MODES, Preprocess

RNG = np.random.default_rng(0)
SIDES = [(1, 1, 5, 7), (300, 20, 16, 64), (64, 64, 224, 224), (7, 90, 7, 31), (31, 8, 60, 8), (640, 480, 64, 48),
         (5, 1, 9, 1), (1, 40, 1, 9)]  # fmt: skip


def by_torch(images, height, width, interpolation):
    """What the levels are defined by."""
    channels_first = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    found = F.interpolate(channels_first, size=(height, width), mode=interpolation, antialias=True)
    return found.permute(0, 2, 3, 1).numpy()


def in_machine_code(images, height, width, interpolation):
    """Resized by the machine code, whatever the process has resized before."""
    found = np.empty((len(images), height, width, 3), np.uint8)
    resample(images, (height, width), interpolation, np.zeros((len(images), 2), np.int64), found)
    return found


@pytest.mark.parametrize("engine", [by_numpy, in_machine_code, resized])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("sides", SIDES + [tuple(RNG.integers(1, 120, 4)) for _ in range(20)])
def test_levels_are_those_of_pytorch(engine, interpolation, sides):
    height, width, to_height, to_width = (int(side) for side in sides)
    noise = RNG.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    for images in (noise, (noise > 127).astype(np.uint8) * 255):  # overshoot of the cubic is clipped
        found = engine(images, to_height, to_width, interpolation)
        assert found.shape == (2, to_height, to_width, 3)
        assert np.array_equal(found, by_torch(images, to_height, to_width, interpolation))


@pytest.mark.parametrize("engine", [by_numpy, in_machine_code])
def test_strong_shrinking(engine):
    """Weights so fine that their sums pass 2^24, which float32 cannot add exactly."""
    images = RNG.integers(250, 256, (1, 9000, 3, 3), dtype=np.uint8)
    assert np.array_equal(engine(images, 2, 3, "bicubic"), by_torch(images, 2, 3, "bicubic"))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_window_is_a_part_of_the_whole(interpolation):
    images = RNG.integers(0, 256, (3, 37, 53, 3), dtype=np.uint8)
    corners = np.array([[0, 0], [5, 9], [16, 31]])
    whole = by_torch(images, 26, 41, interpolation)
    expected = [whole[i, top : top + 10, left : left + 10] for i, (top, left) in enumerate(corners)]
    assert np.array_equal(windows(images, (26, 41), interpolation, corners, (10, 10)), expected)
    expected = [images[i, top : top + 10, left : left + 10] for i, (top, left) in enumerate(corners)]
    assert np.array_equal(windows(images, (37, 53), interpolation, corners, (10, 10)), expected)


@pytest.mark.parametrize("lay", [
    lambda pixels: np.concatenate([pixels, pixels[..., :1]], axis=-1)[..., :3],  # four bytes a pixel
    np.asfortranarray,
    lambda pixels: pixels[:, ::-1],
    lambda pixels: pixels[:, :, ::-1],
    lambda pixels: pixels[..., ::-1],
    lambda pixels: pixels[:, ::2, ::2],
    lambda pixels: pixels[:, 3:-3, 5:-2],
    lambda pixels: np.broadcast_to(pixels[:, :1, :1], pixels.shape),
    lambda pixels: pixels[::-1],
])  # fmt: skip
def test_images_may_lie_in_memory_in_any_way(lay):
    images = lay(RNG.integers(0, 256, (2, 24, 31, 3), dtype=np.uint8))
    images.flags.writeable = False
    assert np.array_equal(in_machine_code(images, 17, 40, "bicubic"), by_torch(images.copy(), 17, 40, "bicubic"))


def test_nothing_is_read_beyond_the_last_pixel():
    """The images end where the memory of the process does, which would be killed."""
    code = """
import ctypes, mmap, numpy as np
from distilhash.data.compiled import resample
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * page)
protect = ctypes.CDLL(None, use_errno=True).mprotect
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert protect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0
for width, step in [(width, step) for width in (1, 2, 3, 7, 20) for step in (3, 4)]:
    size = 5 * width * step
    image = np.frombuffer(memory, np.uint8, size, page - size).reshape(1, 5, width, step)[..., :3]
    for sides in ((5, width), (9, 2 * width), (3, max(1, width // 2))):
        for interpolation in ("bilinear", "bicubic"):
            resample(image, sides, interpolation, np.zeros((1, 2), np.int64), np.empty((1, *sides, 3), np.uint8))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_pytorch_a_process_begins_with_numpy(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(resizing, "_resized", [])
    assert resizing.machine_code(resizing.WORTH) is None
    assert resizing.machine_code(1) is not None


def test_where_numba_cannot_be_loaded_numpy_resizes(monkeypatch):
    monkeypatch.delitem(sys.modules, "distilhash.data.compiled")
    monkeypatch.delattr("distilhash.data.compiled")
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(resizing, "_loaded", functools.cache(resizing._loaded.__wrapped__))
    images = RNG.integers(0, 256, (2, 24, 31, 3), dtype=np.uint8)
    assert resizing.machine_code(2) is None
    assert np.array_equal(resized(images, 17, 40, "bicubic"), by_torch(images, 17, 40, "bicubic"))


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("machine", [True, False])
def test_planes_are_the_tensor(crop_mode, machine, monkeypatch):
    if not machine:
        monkeypatch.setattr(preprocess, "machine_code", lambda images: None)
    pixels = Preprocess(InputConfig(size=24, crop_mode=crop_mode))
    images = [RNG.integers(0, 256, (*sides, 3), dtype=np.uint8) for sides in ((40, 31), (24, 24), (9, 70))]
    planes = pixels.planes(pixels.framed(images))
    assert planes.flags.c_contiguous
    assert torch.equal(torch.from_numpy(planes), pixels(images))
    assert pixels.planes(pixels.framed([])).shape == (0, 3, 24, 24)
