"""One image file to RGB pixels: the only module that opens a file somebody else made.

The size is read from the header and refused before a pixel is decoded. Only the formats below are tried, so a file
cannot choose an unusual decoder. Whatever goes wrong is one exception, UnreadableImage, with the name and the reason.
Colour profiles are ignored, and an animation gives its first frame. HEIC, the format of phones, needs the extra "heic".

What becomes RGB, by rules that depend on the image alone:

- Every image is decoded whole, so that a JPEG, a PNG of its pixels and an array of them are one picture. Of more than
  LARGE_PIXELS, squares of 2, 4, ... pixels a side become their mean. A JPEG of more than MAX_PIXELS is decoded at 1/2,
  1/4 or 1/8 of its sides, a JPEG 2000 that would take more than MAX_BYTES at 1/2; other large images are refused.
- Transparency is laid over white; over black where the picture has less than a third of its contrast on white, as a
  white drawing has.
- Numbers of more than 8 bits are scaled from 0 and the smallest number of 1, 8, 10, 12, 14, 16, 24 or 32 bits that
  holds the largest; where they span no more than a quarter of that, or are negative, from the smallest and the largest.
  So an image that fills 16 bits is as it was made, and one of 12 bits, or of a tenth of the range, is not black. One
  number in 10,000 at either end does not count, so that a sensor's hot pixel does not darken all others.

A file of a few kilobytes may hold 65 million pixels. The memory of large images is bounded, whatever the number of
threads (``_room``), and they are converted in bands, so that no second copy of full size exists. One file, since these
rules and bounds hold together for every format.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, Jpeg2KImagePlugin, JpegImagePlugin, UnidentifiedImageError

from distilhash.errors import DistilhashError

# What sensors of 64 megapixels give. Below Pillow's own limit (89.5 million), so that our message is the one shown.
MAX_PIXELS = 65_000_000
LARGE_PIXELS = 16_000_000  # the most that decode_image() returns
MAX_JPEG_PIXELS = 64 * LARGE_PIXELS
MAX_BYTES = 600 << 20  # that decoding one image may take
BAND_PIXELS = 1 << 18  # converted to RGB at once

# Endings and the formats they stand for; what a file is, its content says.
EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".pfm", ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c", ".heic", ".heif", ".hif",
})  # fmt: skip
# Beside JPEG, which _opened() knows itself.
FORMATS: tuple[str, ...] = ("PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")
try:
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()
    FORMATS = (*FORMATS, "HEIF")

# Bytes that decoding takes for a pixel at most, measured; other formats: four.
_PIXEL_BYTES = {"WEBP": 16, "AVIF": 18, "HEIF": 12, "JPEG2000": 25}
_HEIF = rb"(?:hei[cmsx]|hev[cmsx]|mif1|msf1)"
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|(?:II|MM)(?:[*+]\0|\0[*+])|BM....\0\0\0\0|P[1-6fF]\s+[\d#]"
    rb"|....ftyp(?:avi[fs]|" + _HEIF + rb")|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", re.DOTALL,
)  # fmt: skip
SIGNATURE_BYTES = 16
_SCALES = (1, *(2**bits - 1 for bits in (8, 10, 12, 14, 16, 24, 32)))
_ORIENTATION = 0x0112  # the EXIF tag
_SAMPLE_FORMAT, _PHOTOMETRIC, _WHITE_IS_ZERO = 339, 262, 0  # of TIFF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations in which width and height change places
_RIGHT_FIRST, _BOTTOM_FIRST = (2, 3, 7, 8), (3, 4, 6, 7)  # orientations that begin at the end of a row, of a column

Box = tuple[int, int, int, int]


class UnreadableImage(DistilhashError):  # noqa: N818 (it says what the image is)
    """An image file that cannot be decoded: which one, and why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason.rstrip(".")
        super().__init__("an image cannot be read", f"{name}: {self.reason}", "name another, repair it or leave it out")


class _Room:
    """Memory that the large images of all threads share: who wants more than is left waits, at most for all of it."""

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[None]:
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= size)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()


# One image of LARGE_PIXELS on each core, or a larger one alone.
_room = _Room(4 * LARGE_PIXELS * (os.cpu_count() or 1))


def decode_image(
    file: str | Path | bytes, name: str, shown_side: int | None = None, most_bytes: int = MAX_BYTES
) -> Image.Image:
    """Decode an image file to RGB: rotated as its EXIF tag says, and by the rules of this module.

    Args:
        file: a path, or the content of a file.
        name: what an error calls the image.
        shown_side: for showing alone, as it changes the pixels: a JPEG may come at 1/2, 1/4 or 1/8 of its size, as
            long as its shorter side keeps this many pixels. It is decoded several times faster.
        most_bytes: an image whose decoding takes more memory is too large.

    Returns:
        The image in mode RGB, of at most LARGE_PIXELS, without metadata.

    Raises:
        UnreadableImage: it is no image, damaged, or too large.
    """
    try:
        if not isinstance(file, bytes) and not stat.S_ISREG(Path(file).stat().st_mode):  # a pipe may never end
            raise UnreadableImage(name, "not a regular file")
        with (
            io.BytesIO(file) if isinstance(file, bytes) else Path(file).open("rb") as stream,
            _opened(stream, name) as image,
        ):
            needed = _bytes_needed(image, stream, name, shown_side)
            if needed > most_bytes:
                raise UnreadableImage(name, f"decoding takes {needed >> 20} MiB")
            with _room.take(needed) if needed > 4 * LARGE_PIXELS else contextlib.nullcontext():
                raw_mode = _raw_mode(image)
                image.load()
                rgb = upright_rgb(image, _low_bytes(image, stream, raw_mode))
                if rgb is not image:
                    image.close()  # its memory, before the next large image may be decoded
            rgb.info.clear()  # comments and profiles of any size, which Pillow would write into a thumbnail
            return rgb
    except UnreadableImage:
        raise
    except OSError as error:
        raise UnreadableImage(name, error.strerror or str(error)) from error
    # Decoders meet hostile bytes with nearly every exception there is (struct.error, SyntaxError, KeyError, ...).
    except Exception as error:
        raise UnreadableImage(name, f"{type(error).__name__}: {error}") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file as it is shown, pixels, of which only the header is read.

    Raises:
        UnreadableImage: it is no image.
    """
    name = str(path)
    try:
        with Path(path).open("rb") as stream, _opened(stream, name) as image:
            width, height = image.size
            return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)
    except OSError as error:
        raise UnreadableImage(name, error.strerror or str(error)) from error
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(name, f"{type(error).__name__}: {error}") from error


def jpeg(image: Image.Image, scale: float, quality: int = 82) -> bytes:
    """An image as a JPEG file, smaller by this scale if that is below 1. Raises UnreadableImage."""
    width, height = (max(1, round(side * min(1.0, scale))) for side in image.size)
    file = io.BytesIO()
    try:
        image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0).save(file, "JPEG", quality=quality)
    except (OSError, ValueError) as error:
        raise UnreadableImage("the image", f"it cannot be shown ({error})") from error
    return file.getvalue()


def upright_rgb(image: Image.Image, low: Image.Image | None = None) -> Image.Image:
    """Any image of Pillow's as decode_image() returns it; itself where nothing is to be changed.

    Args:
        image: of any mode.
        low: the low bytes of an image of 16 bits, of which Pillow gives the high bytes in mode RGB or RGBA.
    """
    image.load()
    # After load(): TIFF rotates itself there, and then no longer carries the tag.
    orientation = _orientation(image)
    factors = _factors(*image.size)
    if image.mode != "RGB" or factors != (1, 1) or image.has_transparency_data or low is not None:
        image = _rgb(image, low, factors, orientation)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def is_image(start: bytes) -> bool:
    """Whether a file that begins with these SIGNATURE_BYTES is of a format that decode_image() reads."""
    return _SIGNATURE.match(start) is not None


def _opened(stream: BinaryIO, name: str) -> ImageFile.ImageFile:
    """The image in a file, of which only the header is read."""
    start = stream.read(SIGNATURE_BYTES)
    stream.seek(0)
    try:
        # Not Image.open(), which refuses a JPEG by its full size, however small it will be decoded.
        if start.startswith(b"\xff\xd8\xff"):
            return JpegImagePlugin.JpegImageFile(stream)
        return Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UnreadableImage(name, f"it has more than {MAX_PIXELS:,} pixels") from error
    except (UnidentifiedImageError, SyntaxError) as error:
        reason = "not an image of a known format"
        if "HEIF" not in FORMATS and re.match(rb"....ftyp" + _HEIF, start, re.DOTALL):
            reason = "HEIC needs another package: pip install 'distilhash[heic]'"
        raise UnreadableImage(name, reason) from error


def _bytes_needed(image: ImageFile.ImageFile, stream: BinaryIO, name: str, shown_side: int | None) -> int:
    """The memory that decoding takes, once an image that is too large is set to come smaller, where it can.

    Raises:
        UnreadableImage: it is too large.
    """
    width, height = image.size
    pixels, most = width * height, MAX_PIXELS
    needed, advice = pixels * _PIXEL_BYTES.get(image.format or "", 4), "; save it as JPEG, or smaller"
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        needed, most, advice = _coefficient_bytes(image, stream), MAX_JPEG_PIXELS, ""
        fewest = min(MAX_PIXELS if pixels <= MAX_PIXELS else LARGE_PIXELS, max(MAX_BYTES - needed, 0) // 4)
        factor = next((factor for factor in (1, 2, 4) if pixels <= factor**2 * fewest), 8)
        if shown_side is not None:
            factor = max(factor, min(image.size) // shown_side)
        image.draft(None, (max(1, width // factor), max(1, height // factor)))
        needed += 4 * image.width * image.height
    elif isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile) and needed > MAX_BYTES:
        image.reduce, needed = 1, needed // 4
    elif ";16" in _raw_mode(image) and pixels <= 2 * LARGE_PIXELS:
        needed *= 2  # for the low bytes
    if pixels > most:
        raise UnreadableImage(name, f"{width} x {height} is more than {most:,} pixels{advice}")
    if needed > MAX_BYTES:
        kind = f"{'progressive ' * (not advice)}{image.format}"
        raise UnreadableImage(name, f"{width} x {height} takes too much memory to decode as {kind}{advice}")
    return needed


def _coefficient_bytes(image: JpegImagePlugin.JpegImageFile, stream: BinaryIO) -> int:
    """What libjpeg keeps of a JPEG in several scans, as a progressive one is, until the last is read."""
    end = stream.tell()  # of the header of the first scan: marker, length, number of components, two bytes for each
    stream.seek(max(0, end - 16))
    header = stream.read(min(end, 16))
    components = header[header.rfind(b"\xff\xda") + 4 :][:1]
    if components == bytes([image.layers]) and "progressive" not in image.info:
        return 0
    parts = [across * down for _, across, down, _ in image.layer]
    return 2 * image.width * image.height * sum(parts) // max(parts)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the pixels of an image that is not loaded lie in its file."""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _low_bytes(image: Image.Image, stream: BinaryIO, raw_mode: str) -> Image.Image | None:
    """The low bytes of colours of 16 bits, of which Pillow gives the high bytes, where those are few."""
    kind, _, order = raw_mode.partition(";16")
    if not order or kind not in ("RGB", "RGBA", "RGBX", "LA"):
        return None
    ends = np.array(image.getextrema()[:3])
    if ends.max() >= 64 and np.ptp(ends) >= 64:  # they take more than a quarter of the range
        return None
    if image.width * image.height > 2 * LARGE_PIXELS:
        raise ValueError(f"more than {2 * LARGE_PIXELS:,} pixels of 16 bits that use a small part of their range")
    stream.seek(0)
    low = Image.open(stream, formats=FORMATS)
    big = order == "B" or (order == "N" and sys.byteorder == "big")
    swapped = "RGBA" if kind == "LA" else f"{kind};16{'L' if big else 'B'}"
    low.tile = [t._replace(args=(swapped, *t.args[1:]) if isinstance(t.args, tuple) else swapped) for t in low.tile]
    low.load()
    return low.getchannel("G") if kind == "LA" else low  # where the second of four bytes went


def _orientation(image: Image.Image) -> int:
    # Broken EXIF beside sound pixels is common: the image is then taken as it stands.
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _factors(width: int, height: int) -> tuple[int, int]:
    """By how much the sides shrink, so that at most LARGE_PIXELS remain."""
    factor = 1
    while (width // min(factor, width)) * (height // min(factor, height)) > LARGE_PIXELS:
        factor *= 2
    return min(factor, width), min(factor, height)


def _rgb(image: Image.Image, low: Image.Image | None, factors: tuple[int, int], orientation: int) -> Image.Image:
    """The image in RGB, each pixel the mean of a block; what is no whole block at the right and below is left out.

    At the right and below of the upright image, so that a rotated file and the pixels of another give the same.
    """
    (width, height), (across, down) = image.size, factors
    columns, lines = width // across, height // down
    left = width % across if orientation in _RIGHT_FIRST else 0
    top = height % down if orientation in _BOTTOM_FIRST else 0
    right, bottom = left + columns * across, top + lines * down
    rows = max(1, BAND_PIXELS // (width * down)) * down
    bands = [(left, row, right, min(row + rows, bottom)) for row in range(top, bottom, rows)]
    convert = _conversion(image, low, bands)
    rgb = Image.new("RGB", (columns, lines))
    for band in bands:
        rgb.paste(convert(band).reduce(factors), (0, (band[1] - top) // down))
    return rgb


def _conversion(image: Image.Image, low: Image.Image | None, bands: Sequence[Box]) -> Callable[[Box], Image.Image]:
    """What turns a part of this image into RGB, by rules that see all of its bands."""
    if image.mode[0] in "IF" or low is not None:
        black, white = _scale((_values(image, low, band) for band in bands), image.width * image.height // 10_000)

        def coloured(box: Box) -> Image.Image:
            values = _values(image, low, box)
            levels = np.floor(
                np.clip((np.nan_to_num(values, nan=black) - black) * (255 / (white - black)), 0, 255) + 0.5
            )
            part = Image.fromarray(levels.astype(np.uint8)).convert("RGB")
            key = image.info.get("transparency")
            if image.mode == "RGBA":
                part.putalpha(image.crop(box).getchannel("A"))
            elif isinstance(key, int):
                part.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
            return part
    else:
        coloured = image.crop
    if not image.has_transparency_data:
        return lambda box: coloured(box).convert("RGB")

    def over(background: str, box: Box) -> Image.Image:
        part = coloured(box).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", part.size, background), part).convert("RGB")

    some = bands[:: 1 + len(bands) // 64]
    on_white, on_black = (_contrast(over(background, band) for band in some) for background in ("white", "black"))
    return functools.partial(over, "black" if 3 * on_white < on_black else "white")


def _values(image: Image.Image, low: Image.Image | None, box: Box) -> NDArray[np.float64]:
    """The numbers of a part of an image of more than 8 bits: (h, w) of grey, (h, w, 3) of high and low bytes."""
    values = np.asarray(image.crop(box))
    if low is not None:
        low_bytes = np.asarray(low.crop(box))
        return (low_bytes[..., None] if low.mode == "L" else low_bytes[..., :3]) + 256.0 * values[..., :3]
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:  # which Pillow reads as if it were signed
        values = values.view(np.uint32)
    values = values.astype(np.float64)
    values[~np.isfinite(values)] = np.nan  # no part of the range, and black
    return (1 if image.mode == "F" else 65535) - values if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else values


def _scale(bands: Iterable[NDArray[np.float64]], left_out: int) -> tuple[float, float]:
    """The values that become black and white, of all but the ``left_out`` least and largest."""
    least = largest = np.empty(0)
    for band in bands:
        values = band[np.isfinite(band)]
        least, largest = (
            _least(np.concatenate([*pair]), left_out + 1) for pair in ((least, values), (largest, -values))
        )
    if not least.size:
        return 0, 1
    place = left_out if least.size > left_out else 0
    lowest, highest = float(np.sort(least)[place]), -float(np.sort(largest)[place])
    full = next((scale for scale in _SCALES if highest <= scale), highest)
    stretched = lowest < 0 or 4 * (highest - lowest) <= full
    return (lowest, highest) if stretched and lowest < highest else (0, full)


def _least(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The ``count`` least values, in any order; all where there are no more."""
    return values if values.size <= count else np.partition(values, count - 1)[:count]


def _contrast(bands: Iterable[Image.Image]) -> float:
    """The standard deviation of the levels of an image in RGB, from sums of whole numbers: bands do not change it."""
    counts = np.sum([band.histogram() for band in bands], axis=0).reshape(3, 256)
    levels = np.arange(256)
    count = counts[0].sum()
    variances = (counts @ levels**2) / count - ((counts @ levels) / count) ** 2
    return float(np.sqrt(variances.sum()))
