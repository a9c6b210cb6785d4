"""From pixels to the input of a network: one preprocessing for training, encoding and serving.

Crop mode "crop": the shorter side is resized to round(size / (1 - margin)), and a window of size x size is taken.
Crop mode "pad": the square in the middle is resized to size x size, and a window of the same size is taken from its
reflection-padded version, at most round(margin * size) pixels away in each direction. A view says where the window
lies, as a fraction of the slack (0.5, 0.5 is the middle), and whether it is mirrored. Fractions, not pixels, so that
a teacher at 128 pixels and a student at 32 see the same part of an image.

Pillow resizes, with and without PyTorch in the process, so that an exported hasher sees the same bits as training. An
image's result does not depend on the images beside it. Arrays and Pillow's images become RGB by the rules of
data/decode.py, so that a file and its pixels give the same. PyTorch is imported only where a tensor is asked for.

Shapes: n images of a batch, H, W sides of an image in pixels, S the size that enters the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distilhash.config import InputConfig
from distilhash.data.decode import upright_rgb
from distilhash.data.order import AUGMENT, VIEWS, uniform
from distilhash.errors import DistilhashError

if TYPE_CHECKING:
    from torch import Tensor

    from distilhash.data.sources import ImageSource

# An image longer than this many times its width gives its middle part: resized whole, a line of pixels would fill
# the memory.
MAX_ASPECT = 8
STRONGEST = 1.6  # factor of brightness or contrast in augmented()
CROP_MODES = ("crop", "pad")
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

Pixels = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """How each of n images is augmented."""

    flip: NDArray[np.bool_]  # (n,) mirrored?
    offset: NDArray[np.float64]  # (n, 2) place of the window, (down, right) as fractions of the slack in [0, 1]

    def __getitem__(self, which: NDArray[np.int64]) -> Views:
        """The views of some of the images."""
        return Views(self.flip[which], self.offset[which])


def make_views(indices: NDArray[np.int64], view: int, seed: int) -> Views:
    """The random view of number ``view`` (0, 1, ...) of each image: a function of image, view and seed alone."""
    assert view >= 0, "a negative view is the unchanged image: pass views=None"
    flip, down, right = (uniform(indices, seed, VIEWS, view, draw) for draw in range(3))
    return Views(flip >= 0.5, np.stack([down, right], axis=1))


def augmented(cropped: Pixels, indices: NDArray[np.int64], epoch: int, seed: int) -> Pixels:
    """Crops (n, S, S, 3) as another camera might give them, by a hash of (seed, epoch, image).

    Half of them are mirrored; brightness and contrast are multiplied by factors within 1 / STRONGEST and STRONGEST,
    evenly in their logarithm.
    """
    flip_n, *draws = (uniform(indices, seed, AUGMENT, epoch, draw) for draw in range(3))
    factors = [(STRONGEST ** (2 * draw - 1)).astype(np.float32)[:, None, None, None] for draw in draws]
    grey = cropped.mean(axis=(1, 2, 3), dtype=np.float32, keepdims=True)
    changed: Pixels = np.clip(((cropped - grey) * factors[0] + grey) * factors[1] + 0.5, 0, 255).astype(np.uint8)
    changed[flip_n >= 0.5] = changed[flip_n >= 0.5, :, ::-1]
    return changed


class Preprocess:
    """The preprocessing that a network's InputConfig describes.

    Raises:
        DistilhashError: mean or std are not three numbers, or std are not positive.
    """

    def __init__(self, config: InputConfig) -> None:
        if len(config.mean) != 3 or len(config.std) != 3 or not min(config.std) > 0:
            raise DistilhashError("mean and std need three numbers, std positive ones", f"{config.mean}, {config.std}")
        self.config = config
        # NumPy broadcasts over a last dimension of 3 several times slower than over a row of pixels.
        self._mean = np.tile(np.array([255.0 * m for m in config.mean], np.float32), config.size)
        self._scale = np.tile(np.array([1.0 / (255.0 * s) for s in config.std], np.float32), config.size)

    def __call__(self, images: Pixels | Sequence[Image.Image | Pixels], views: Views | None = None) -> Tensor:
        """Crop and normalise: float32 (n, 3, S, S), see crop() and tensor()."""
        return self.tensor(self.crop(images, views))

    def crop(self, images: Pixels | Sequence[Image.Image | Pixels], views: Views | None = None) -> Pixels:
        """Resize images and take their windows.

        Args:
            images: uint8 (n, H, W, 3), or n PIL images or arrays (H, W, 3) of any sizes.
            views: the augmentation of each image; left out: the middle, unchanged.

        Returns:
            uint8 (n, S, S, 3).

        Raises:
            DistilhashError: images of another type or shape, or views that do not fit them.
        """
        _check_images(images)
        if views is not None:
            _check_views(views, len(images))
        offset_n2 = np.full((len(images), 2), 0.5) if views is None else views.offset
        cropped = self._without_resizing(images, offset_n2) if isinstance(images, np.ndarray) else None
        if cropped is None:
            cropped = np.empty((len(images), self.config.size, self.config.size, 3), np.uint8)
            for i, image in enumerate(images):
                cropped[i] = self._resized(image, offset_n2[i])
        return cropped if views is None else self._augmented(cropped, views)

    def read(self, source: ImageSource, indices: NDArray[np.int64], views: Views | None = None) -> Pixels:
        """The cropped images of a source, uint8 (n, S, S, 3): see read_for()."""
        return read_for([self], source, indices, views)[0]

    def tensor(self, cropped: Pixels) -> Tensor:
        """(pixel / 255 - mean) / std of uint8 (n, S, S, 3): float32 (n, 3, S, S) in channels-last memory."""
        import torch

        return torch.from_numpy(self._normalised(cropped)).permute(0, 3, 1, 2)

    def planes(self, cropped: Pixels) -> NDArray[np.float32]:
        """The same numbers as a NumPy array (n, 3, S, S), one colour after another in memory."""
        return np.ascontiguousarray(self._normalised(cropped).transpose(0, 3, 1, 2))

    def _normalised(self, cropped: Pixels) -> NDArray[np.float32]:
        rows = cropped.reshape(*cropped.shape[:2], cropped.shape[2] * 3).astype(np.float32)
        rows -= self._mean
        rows *= self._scale
        return rows.reshape(cropped.shape)

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which the middle part of an image is resized."""
        if self.config.crop_mode == "pad":
            return self.config.size, self.config.size
        side = round(self.config.size / (1 - self.config.margin))
        return round(side * max(1.0, height / width)), round(side * max(1.0, width / height))

    def _middle(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the middle part that is resized: a square, or at most MAX_ASPECT squares."""
        aspect = 1 if self.config.crop_mode == "pad" else MAX_ASPECT
        high, wide = min(height, aspect * width), min(width, aspect * height)
        top, left = (height - high) // 2, (width - wide) // 2
        return left, top, left + wide, top + high

    def _without_resizing(self, images: Pixels, offset_n2: NDArray[np.float64]) -> Pixels | None:
        """The windows of images (n, H, W, 3) that have the right size already; None for others."""
        left, top, right, bottom = self._middle(*images.shape[1:3])
        sides = (bottom - top, right - left)
        if self._sides(*sides) != sides:
            return None
        return _windows(images[:, top:bottom, left:right], offset_n2, self.config.size)

    def _resized(self, image: Image.Image | Pixels, offset_2: NDArray[np.float64]) -> Pixels:
        """(S, S, 3): the window of one image, whose other pixels are not computed."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(np.ascontiguousarray(image))
        image = upright_rgb(image)
        middle = self._middle(image.height, image.width)
        if middle != (0, 0, *image.size):
            image = image.crop(middle)
        size, (width, height) = self.config.size, image.size
        high, wide = self._sides(height, width)
        top, left = _corners(offset_2, (high, wide), size)
        down, right = height / high, width / wide  # pixels of the image that one resized pixel covers
        box = (left * right, top * down, min(width, (left + size) * right), min(height, (top + size) * down))
        return np.asarray(image.resize((size, size), INTERPOLATIONS[self.config.interpolation], box))

    def _augmented(self, cropped: Pixels, views: Views) -> Pixels:
        """What a view changes after resizing: the shift of crop mode "pad", and the mirror image."""
        size = self.config.size
        if self.config.crop_mode == "pad":
            shift = round(self.config.margin * size)
            padded = np.pad(cropped, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="reflect")
            cropped = _windows(padded, views.offset, size)
        # Whole rows of numbers: with steps of three colours NumPy is several times slower.
        rows = cropped.reshape(len(cropped), size, size * 3)
        mirrored = np.arange(size * 3).reshape(size, 3)[::-1].ravel()
        rows[views.flip] = np.take(rows[views.flip], mirrored, axis=2)
        return cropped


def read_for(
    pipelines: Sequence[Preprocess], source: ImageSource, indices: NDArray[np.int64], views: Views | None = None
) -> list[Pixels]:
    """What each of some pipelines crops of the same views of a source's images: uint8 (n, S, S, 3).

    Files are decoded once and cropped one after the other: a thread holds one image at its full size and no more.

    Raises:
        UnreadableImage: a file cannot be decoded.
    """
    if not source.decodes:
        images = source.read(indices)
        return [pipeline.crop(images, views) for pipeline in pipelines]
    if views is not None:
        _check_views(views, len(indices))
    cropped = [np.empty((len(indices), *[pipeline.config.size] * 2, 3), np.uint8) for pipeline in pipelines]
    for i in range(len(indices)):
        image = source.read(indices[i : i + 1])
        for pipeline, crops in zip(pipelines, cropped, strict=True):
            crops[i : i + 1] = pipeline.crop(image, None if views is None else views[np.array([i])])
    return cropped


def _corners(offset: NDArray[np.float64], sides: tuple[int, int], size: int) -> NDArray[np.int64]:
    """(down, right) of windows, to the nearest pixel: so two sizes stay as close together as their pixels allow."""
    corners: NDArray[np.int64] = np.floor(offset * (np.array(sides) - size) + 0.5).astype(np.int64)
    return corners


def _windows(images: Pixels, offset_n2: NDArray[np.float64], size: int) -> Pixels:
    """A window (S, S, 3) of each image, copied."""
    windows = np.empty((len(images), size, size, 3), np.uint8)
    corners = _corners(offset_n2, images.shape[1:3], size).tolist()
    for window, image, (top, left) in zip(windows, images, corners, strict=True):
        window[:] = image[top : top + size, left : left + size]
    return windows


def _check_images(images: Pixels | Sequence[Image.Image | Pixels]) -> None:
    batch = isinstance(images, np.ndarray)
    for image in [images] if isinstance(images, np.ndarray) else images:
        if isinstance(image, np.ndarray):
            fits = image.dtype == np.uint8 and image.ndim == (4 if batch else 3) and image.shape[-1] == 3
            fits, got = fits and 0 not in image.shape[-3:], f"{image.dtype} {image.shape}"
        else:
            fits, got = 0 not in image.size, f"an image of {image.size}"
        if not fits:
            raise DistilhashError(
                "images must be uint8 with three colours last, or PIL images",
                got,
                "pass one array (n, H, W, 3), or a list of images or arrays (H, W, 3)",
            )


def _check_views(views: Views, count: int) -> None:
    if views.flip.shape != (count,) or views.flip.dtype != np.bool_ or views.offset.shape != (count, 2):
        raise DistilhashError(
            "every image needs one view: flip (n,) bool and offset (n, 2)",
            f"{views.flip.dtype} {views.flip.shape} and {views.offset.shape} for {count} images",
        )
    if count and not (views.offset.min() >= 0 and views.offset.max() <= 1):  # also refuses NaN
        raise DistilhashError("a view's offset is a fraction in [0, 1]", f"{views.offset.min()}..{views.offset.max()}")
