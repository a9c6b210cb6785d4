"""One image file to RGB pixels: the only place that opens a file somebody else made.

The size is read from the header and refused before a pixel is decoded; only the formats below are tried, so that a
file cannot choose an unusual decoder; whatever goes wrong is one exception, UnreadableImage, with the name and the
reason. The rotation of EXIF is applied, transparency is laid over white, 16-bit greys are scaled to 8, and an
animation gives its first frame. Colour profiles are ignored. HEIC, the format of phones, needs the extra "heic".

Memory: a file of a few kilobytes may hold 65 million pixels. The decoder's own copy is turned into RGB band by band,
and large images are decoded one at a time, whatever the number of threads.

Shapes: H, W sides in pixels.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distilhash.data.pixels import pixels_of
from distilhash.errors import DistilhashError
from distilhash.runtime import release_memory

# What sensors of 64 megapixels give. Below Pillow's own limit (89.5 million, which stays in force), so that ours is the
# one that speaks.
MAX_PIXELS = 65_000_000
WHOLE_PIXELS = 1 << 20  # of an image that is turned into RGB at once
BAND_PIXELS = 1 << 18  # of a larger one that are
LARGE_PIXELS = 16_000_000
_one_large = threading.Lock()
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif"})
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
try:
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()  # as Pillow's own decoders do when they are imported
    FORMATS = (*FORMATS, "HEIF")

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}


class UnreadableImage(DistilhashError):  # noqa: N818 (it says what the image is)
    """An image file that cannot be decoded: which one, and why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason.rstrip(".")
        super().__init__("an image cannot be read", f"{name}: {self.reason}", "repair it or take it away")


def decode_image(file: Path | bytes, name: str, least_side: int | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file, or of its bytes: uint8 (H, W, 3), RGB, upright.

    ``least_side`` (pixels) lets a JPEG, and any image of more than LARGE_PIXELS, come at 1/2, 1/4 or 1/8 of its size, a
    JPEG several times faster, as long as its shorter side stays at least so long; it changes pixels, so one pipeline
    must use one value. Pixels may lie four bytes apart in memory. Errors: UnreadableImage.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(name, f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels")
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            large = image.width * image.height > LARGE_PIXELS
            with _one_large if large else contextlib.nullcontext():
                if large:  # what a network has kept for its next batch
                    release_memory()
                image.load()
                # After load(): TIFF rotates itself there, and then no longer carries the tag.
                rotated = _UPRIGHT.get(_orientation(image))
                pixels = _reduced(image, _factor(image, least_side))
                if large:  # before the next one may be decoded
                    image.close()
                    release_memory()
            return pixels if rotated is None else np.ascontiguousarray(rotated(pixels))
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        reason = "not an image of a known format"
        if "HEIF" not in FORMATS and _is_heif(file):
            reason = "HEIC needs another package: pip install 'distilhash[heic]'"
        raise UnreadableImage(name, reason) from error
    except OSError as error:
        raise UnreadableImage(name, error.strerror or str(error)) from error
    # Decoders meet hostile bytes with nearly every exception there is (struct.error, SyntaxError, KeyError, ...).
    except Exception as error:
        raise UnreadableImage(name, f"{type(error).__name__}: {error}") from error


def _is_heif(file: Path | bytes) -> bool:
    start = file[:12] if isinstance(file, bytes) else _first_bytes(file)
    return start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(12)


def _orientation(image: Image.Image) -> int:
    # Broken EXIF beside sound pixels is common: the image is then taken as it stands.
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _factor(image: Image.Image, least_side: int | None) -> int:
    """By how much the sides of a large image shrink, so that its RGB is not held in full."""
    if least_side is None or image.width * image.height <= LARGE_PIXELS:
        return 1
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or min(image.size) >= factor * least_side)


def _reduced(image: Image.Image, factor: int) -> NDArray[np.uint8]:
    """RGB (H, W, 3) of the image with its sides divided by a factor, rounded up: the mean of each square of pixels."""
    width, height = image.size
    rows = max(8, BAND_PIXELS // width // 8 * 8)  # of a band; a multiple of every factor
    if factor == 1 and width * height <= WHOLE_PIXELS:
        return pixels_of(_rgb(image))
    pixels = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    for top in range(0, height, rows):
        band = image if height <= rows else image.crop((0, top, width, min(height, top + rows)))
        reduced = _rgb(band) if factor == 1 else _rgb(band).reduce(factor)
        found = np.asarray(reduced)
        pixels[top // factor :][: len(found)] = found
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB."""
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255 instead of scaling
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")
