"""From pixels to what a network eats: one pipeline for training, encoding and serving.

Framing "crop": the shorter side is resized to round(size / (1 - margin)), and a window of size x size is taken.
Framing "pad": the square in the middle is resized to size x size, and a window of the same size is taken from its
reflection-padded version, at most round(margin * size) pixels away in each direction. A view says where the window
lies, as a fraction of the slack (0.5, 0.5 is the middle), and whether it is mirrored. Fractions, not pixels, so that
a teacher at 128 pixels and a student at 32 see the same part of an image.

Resizing (``resizing``) is antialiased and adds whole numbers, so its sums are exact. Every step is elementwise or per
image, so an image's result does not depend on the images beside it, to the last bit. PyTorch is imported only where a
tensor is asked for: an exported hasher preprocesses without it, to the same bits.

Shapes: n images of a batch, H, W sides of an image in pixels, S the size that enters the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distilhash.config import InputConfig
from distilhash.data.order import VIEWS, random64
from distilhash.data.resizing import INTERPOLATIONS, machine_code, resized, windows
from distilhash.errors import DistilhashError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from distilhash.data.sources import ImageSource

# An image longer than this many times its width gives its middle part: resized whole, a line of pixels would fill
# the memory.
MAX_ASPECT = 8
CROP_MODES = ("crop", "pad")


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """How each of n images is looked at."""

    flip: NDArray[np.bool_]  # (n,) mirrored?
    offset: NDArray[np.float64]  # (n, 2) place of the window, (down, right) as fractions of the slack in [0, 1]

    def __getitem__(self, which: NDArray[np.int64]) -> Views:
        """The views of some of the images."""
        return Views(self.flip[which], self.offset[which])


def make_views(indices: NDArray[np.int64], view: int, seed: int) -> Views:
    """The random view of number ``view`` (0, 1, ...) of each image: a function of image, view and seed alone."""
    assert view >= 0, "a negative view is the unchanged image: pass views=None"
    flip, down, right = (random64(indices, seed, VIEWS, view, draw) for draw in range(3))
    # The upper 53 bits fill a float64 in [0, 1).
    offset = np.stack([down >> np.uint64(11), right >> np.uint64(11)], axis=1) * 2.0**-53
    return Views((flip >> np.uint64(63)).astype(bool), offset)


class Preprocess:
    """The preprocessing that a network's InputConfig describes. Errors: DistilhashError for a config that makes no sense."""

    def __init__(self, config: InputConfig) -> None:
        if config.crop_mode not in CROP_MODES:
            raise unknown_name("crop_mode", config.crop_mode, CROP_MODES)
        if config.interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", config.interpolation, INTERPOLATIONS)
        if config.size < 1:
            raise DistilhashError("the input size must be at least 1 pixel", config.size)
        if not 0 <= config.margin < 0.5:  # also what keeps a reflection inside the image
            raise DistilhashError("the margin must lie in [0, 0.5)", config.margin)
        if len(config.mean) != 3 or len(config.std) != 3 or not min(config.std) > 0:
            raise DistilhashError("mean and std need three numbers, std positive ones", f"{config.mean}, {config.std}")
        self.config = config
        self._mean = np.array([255.0 * m for m in config.mean], np.float32)
        self._scale = np.array([1.0 / (255.0 * s) for s in config.std], np.float32)

    @property
    def least_side(self) -> int:
        """The shorter side that an image should still have, pixels: what to pass to a source's read()."""
        size, margin = self.config.size, self.config.margin
        return size if self.config.crop_mode == "pad" else round(size / (1 - margin))

    def __call__(self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], views: Views | None = None) -> Tensor:
        """Float32 (n, 3, S, S) in channels-last memory: (pixel / 255 - mean) / std.

        ``images``: uint8 (n, H, W, 3), or n arrays (H, W, 3) of any sizes. Without ``views``: the middle, as it is.
        Errors: DistilhashError for other types or shapes.
        """
        return self.tensor(self.framed(images, views))

    def read(self, source: ImageSource, indices: NDArray[np.int64], views: Views | None = None) -> NDArray[np.uint8]:
        """The images of a source, framed: uint8 (n, S, S, 3). Errors: UnreadableImage.

        Files are decoded and framed one after the other, so that a thread holds one image at its full size and no more.
        """
        if not source.decodes:
            return self.framed(source.read(indices, self.least_side), views)
        framed = np.empty((len(indices), self.config.size, self.config.size, 3), np.uint8)
        if views is not None:
            _check_views(views, len(indices))
        for i in range(len(indices)):
            image = source.read(indices[i : i + 1], self.least_side)
            framed[i : i + 1] = self.framed(image, None if views is None else views[np.array([i])])
        return framed

    def tensor(self, framed: NDArray[np.uint8]) -> Tensor:
        """The same of pixels that were framed already, uint8 (n, S, S, 3), perhaps by another process."""
        import torch

        pixels = torch.empty(framed.shape)
        # One row of pixels at a time: NumPy broadcasts over a last dimension of 3 several times slower.
        rows = pixels.view(-1, framed.shape[2] * 3).numpy()
        levels = framed.reshape(rows.shape)
        mean, scale = np.tile(self._mean, framed.shape[2]), np.tile(self._scale, framed.shape[2])
        machine = machine_code(len(framed))
        if machine:
            machine.normalise(levels, mean, scale, rows)
        else:
            rows[:] = levels
            rows -= mean
            rows *= scale
        return pixels.permute(0, 3, 1, 2)

    def planes(self, framed: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The same numbers without PyTorch, float32 (n, 3, S, S), one colour after another."""
        pixels = np.empty((len(framed), 3, *framed.shape[1:3]), np.float32)
        pixels[:] = framed.transpose(0, 3, 1, 2)
        pixels -= self._mean[:, None, None]
        pixels *= self._scale[:, None, None]
        return pixels

    def framed(
        self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], views: Views | None = None
    ) -> NDArray[np.uint8]:
        """The pixels that enter the network, uint8 (n, S, S, 3), before their numbers are normalised."""
        if isinstance(images, np.ndarray):
            _check_images(images, 4)
        groups = {} if isinstance(images, np.ndarray) else _by_shape(images)
        if views is not None:
            _check_views(views, len(images))
        if isinstance(images, np.ndarray) and len(images):
            return self._framed(images, views)
        framed = np.empty((len(images), self.config.size, self.config.size, 3), np.uint8)
        for which in groups.values():
            first = images[which[0]]
            # reshape, not [None]: with that one's stride of 0 PyTorch would not see that the colours lie together.
            group = first.reshape(1, *first.shape) if len(which) == 1 else np.stack([images[i] for i in which])
            framed[which] = self._framed(group, None if views is None else views[which])
        return framed

    def _framed(self, images: NDArray[np.uint8], views: Views | None) -> NDArray[np.uint8]:
        """(n, H, W, 3) to (n, S, S, 3), both uint8."""
        size = self.config.size
        if self.config.crop_mode == "pad":
            images = resized(_middle(images, 1), size, size, self.config.interpolation)
            if views is None:
                return images
            shift = round(self.config.margin * size)
            images = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="reflect")
            sides = images.shape[1:3]
        else:
            images = _middle(images, MAX_ASPECT)
            height, width = images.shape[1:3]
            side = self.least_side
            sides = round(side * max(1.0, height / width)), round(side * max(1.0, width / height))
        offset = np.full((len(images), 2), 0.5) if views is None else views.offset
        # To the nearest pixel, which keeps two sizes as close together as their pixels allow.
        corners = np.floor(offset * (np.array(sides) - size) + 0.5).astype(np.int64)
        found = windows(images, sides, self.config.interpolation, corners, (size, size))
        if views is not None and views.flip.any():
            rows = found.reshape(len(found), size, size * 3)
            mirrored = np.arange(size * 3).reshape(size, 3)[::-1].ravel()
            rows[views.flip] = np.take(rows[views.flip], mirrored, axis=2)
        return found


def _middle(images: NDArray[np.uint8], aspect: int) -> NDArray[np.uint8]:
    """The middle part that is at most ``aspect`` times as long as it is wide."""
    height, width = images.shape[1:3]
    high, wide = min(height, aspect * width), min(width, aspect * height)
    top, left = (height - high) // 2, (width - wide) // 2
    return images[:, top : top + high, left : left + wide]


def _by_shape(images: Sequence[NDArray[np.uint8]]) -> dict[tuple[int, ...], NDArray[np.int64]]:
    """{shape: positions of the images that have it}."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        _check_images(image, 3)
        found.setdefault(image.shape, []).append(i)
    return {shape: np.array(positions) for shape, positions in found.items()}


def _check_images(images: NDArray[np.uint8], dimensions: int) -> None:
    if images.dtype != np.uint8 or images.ndim != dimensions or images.shape[-1] != 3 or 0 in images.shape[-3:]:
        raise DistilhashError(
            "images must be uint8 with three colours last",
            f"{images.dtype} {images.shape}",
            "pass one array (n, H, W, 3) or a list of arrays (H, W, 3)",
        )


def _check_views(views: Views, count: int) -> None:
    if views.flip.shape != (count,) or views.flip.dtype != np.bool_ or views.offset.shape != (count, 2):
        raise DistilhashError(
            "every image needs one view: flip (n,) bool and offset (n, 2)",
            f"{views.flip.dtype} {views.flip.shape} and {views.offset.shape} for {count} images",
        )
    if count and not (views.offset.min() >= 0 and views.offset.max() <= 1):  # also refuses NaN
        raise DistilhashError("a view's offset is a fraction in [0, 1]", f"{views.offset.min()}..{views.offset.max()}")
