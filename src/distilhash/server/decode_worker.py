"""The worker process that opens images: uploads to pixels of the input size, files to thumbnails. It may be killed.

Run as ``python -m distilhash.server.decode_worker CONFIG`` with an InputConfig as JSON. A message is one letter and its
subject: C and the bytes of an upload to crop, T or V and the path of a file for its thumbnail or view. PyTorch is not
imported, so a replacement starts quickly.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

from PIL import Image

from distilhash.config import InputConfig
from distilhash.data.decode import UnreadableImage, decode_image
from distilhash.data.transforms import Preprocess
from distilhash.server.workers import Answer, run_worker

CROP, THUMBNAIL, VIEW = b"C", b"T", b"V"
THUMBNAIL_SIDE, VIEW_SIDE = 320, 2400  # pixels: the shorter side of a thumbnail, the longer one of a view
MAX_ASPECT = 3  # longer side / shorter side of a thumbnail; a panorama gets a smaller one
QUALITY = 82  # of JPEG


def answer_with(config: InputConfig) -> Answer:
    """The function that answers messages: S * S * 3 bytes of pixels (S = ``config.size``), or a JPEG file."""
    preprocess = Preprocess(config)

    def answer(message: bytes) -> bytes:
        kind, content = message[:1], message[1:]
        if kind == CROP:
            image = decode_image(content, "the image", preprocess.least_side)
            return preprocess.crop([image]).tobytes()
        path = Path(os.fsdecode(content))
        return thumbnail(path) if kind == THUMBNAIL else view(path)

    return answer


def thumbnail(path: Path) -> bytes:
    """A small JPEG of an image file, upright.

    Raises:
        UnreadableImage: the file cannot be decoded.
    """
    image = decode_image(path, path.name, THUMBNAIL_SIDE)
    return _jpeg(image, min(1.0, THUMBNAIL_SIDE / min(image.size), MAX_ASPECT * THUMBNAIL_SIDE / max(image.size)))


def view(path: Path) -> bytes:
    """A large JPEG of an image file whose format browsers do not show.

    Raises:
        UnreadableImage: the file cannot be decoded.
    """
    image = decode_image(path, path.name)
    return _jpeg(image, min(1.0, VIEW_SIDE / max(image.size)))


def _jpeg(image: Image.Image, scale: float) -> bytes:
    width, height = (max(1, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    try:
        image.save(file, "JPEG", quality=QUALITY)
    except (OSError, ValueError) as error:
        raise UnreadableImage("the image", f"it cannot be shown ({error})") from error
    return file.getvalue()


if __name__ == "__main__":
    run_worker(lambda: (b"", answer_with(InputConfig(**json.loads(sys.argv[1])))))
