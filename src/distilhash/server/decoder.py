"""The worker process that opens images: uploads to the pixels of a network, files to thumbnails. It may be killed.

Started as ``python -m distilhash.server.decoder CONFIG`` with an InputConfig as JSON. A message is a letter and what
it is about: F and the bytes of an upload; T or V and the path of a file, for its thumbnail or a view of it. No torch is
imported, so that a new worker is there at once.

Shapes: S pixels, the side that enters the network.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from distilhash.config import InputConfig
from distilhash.data.decode import UnreadableImage, decode_image
from distilhash.data.transforms import Preprocess
from distilhash.server.pipes import serve_pipe

FRAME, THUMBNAIL, VIEW = b"F", b"T", b"V"
THUMBNAIL_SIDE, VIEW_SIDE = 320, 2400  # pixels: the shorter side of a thumbnail, the longer one of a view
LONGEST = 3  # times its shorter side: what a thumbnail shows of a panorama
QUALITY = 82


def main() -> None:
    """Answer until the pipe is closed."""
    serve_pipe(lambda: (b"", answering(InputConfig(**json.loads(sys.argv[1])))))


def answering(config: InputConfig) -> Callable[[bytes], bytes]:
    """What answers a message: framed pixels (S * S * 3 bytes), or a JPEG file."""
    preprocess = Preprocess(config)

    def answer(message: bytes) -> bytes:
        kind, rest = message[:1], message[1:]
        if kind == FRAME:
            image = decode_image(rest, "the image", preprocess.least_side)
            return preprocess.crop([image]).tobytes()
        path = Path(os.fsdecode(rest))
        return thumbnail(path) if kind == THUMBNAIL else view(path)

    return answer


def thumbnail(path: Path) -> bytes:
    """A small JPEG of an image file, upright. Errors: UnreadableImage."""
    image = decode_image(path, path.name, THUMBNAIL_SIDE)
    scale = min(1.0, THUMBNAIL_SIDE / min(image.size), LONGEST * THUMBNAIL_SIDE / max(image.size))
    return _jpeg(image, scale)


def view(path: Path) -> bytes:
    """A large JPEG of an image file that browsers do not show. Errors: UnreadableImage."""
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
    main()
