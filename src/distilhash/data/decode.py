"""One image file to RGB pixels: the only module that opens a file somebody else made.

The size is read from the header and refused before a pixel is decoded. Only the formats below are tried, so a file
cannot choose an unusual decoder. Whatever goes wrong is one exception, UnreadableImage, with the name and the reason.
Colour profiles are ignored, and an animation gives its first frame. HEIC, the format of phones, needs the extra "heic".

A file of a few kilobytes may hold 65 million pixels. Such images are decoded one at a time, whatever the number of
threads, and are converted to RGB in bands, so that no second copy of full size exists.
"""

from __future__ import annotations

import contextlib
import io
import threading
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from distilhash.errors import DistilhashError

# What sensors of 64 megapixels give. Below Pillow's own limit (89.5 million), so that our message is the one shown.
MAX_PIXELS = 65_000_000
LARGE_PIXELS = 16_000_000  # above it: one image at a time, and of reduced size where the caller allows it
BAND_PIXELS = 1 << 18  # converted to RGB at once
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif"})
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
try:
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()
    FORMATS = (*FORMATS, "HEIF")

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_one_large = threading.Lock()


class UnreadableImage(DistilhashError):  # noqa: N818 (it says what the image is)
    """An image file that cannot be decoded: which one, and why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason.rstrip(".")
        super().__init__("an image cannot be read", f"{name}: {self.reason}", "repair it or take it away")


def decode_image(file: Path | bytes, name: str, least_side: int | None = None) -> Image.Image:
    """Decode an image file: rotated as its EXIF tag says, transparency over white, 16-bit grey scaled to 8 bits.

    Args:
        file: a path, or the content of a file.
        name: what an error calls the image.
        least_side: lets a JPEG, and any image of more than LARGE_PIXELS, come at 1/2, 1/4 or 1/8 of its size, as long
            as its shorter side keeps this many pixels: a JPEG is decoded several times faster. It changes the pixels,
            so one pipeline must use one value.

    Returns:
        The image in mode RGB, without metadata.

    Raises:
        UnreadableImage: it is no image, damaged, or of more than MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(name, f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels")
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            large = image.width * image.height > LARGE_PIXELS
            with _one_large if large else contextlib.nullcontext():
                image.load()
                # After load(): TIFF rotates itself there, and then no longer carries the tag.
                orientation = _orientation(image)
                rgb = _rgb(image, _factor(image, least_side) if large else 1)
                if rgb is not image:
                    image.close()  # its memory, before the next large image may be decoded
            upright = rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
            upright.info.clear()  # comments and profiles of any size, which Pillow would write into a thumbnail
            return upright
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
    if isinstance(file, bytes):
        start = file[:12]
    else:
        with file.open("rb") as opened:
            start = opened.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def _orientation(image: Image.Image) -> int:
    # Broken EXIF beside sound pixels is common: the image is then taken as it stands.
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _factor(image: Image.Image, least_side: int | None) -> int:
    """By how much the sides may shrink."""
    if least_side is None:
        return 1
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or min(image.size) >= factor * least_side)


def _rgb(image: Image.Image, factor: int) -> Image.Image:
    """The image in RGB with its sides divided by ``factor``, rounded up: the mean of each square of pixels."""
    if image.mode == "RGB" and factor == 1 and not image.has_transparency_data:
        return image
    width, height = image.size
    rows = max(8, BAND_PIXELS // width // 8 * 8)  # a multiple of every factor
    rgb = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        band = _band_rgb(image.crop((0, top, width, min(height, top + rows))))
        rgb.paste(band.reduce(factor), (0, top // factor))
    return rgb


def _band_rgb(band: Image.Image) -> Image.Image:
    if band.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255 instead of scaling
        grey = np.clip(np.asarray(band).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if band.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if band.has_transparency_data:
        rgba = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return band.convert("RGB")
