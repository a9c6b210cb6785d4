"""What worker processes do: decode images (these may be killed), and encode pixels. One protocol, two programs:

- ``python -m distilhash.server.jobs decode CONFIG``, with an InputConfig as JSON. A message is CROP and the bytes of an
  upload, or THUMBNAIL, VIEW or SIZE and the path of a file. PyTorch is not imported, so a replacement starts quickly.
- ``python -m distilhash.server.jobs encode HASHER``, with the path of a hasher or of the model file of an exported one,
  for which PyTorch is not imported. Its greeting is JSON: "fingerprint", and "input", the InputConfig that the decoder
  needs. A message is what CROP returned, so this process never sees a foreign file.

Shapes: S input size in pixels, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilhash.codes import pack
from distilhash.config import InputConfig
from distilhash.data.decode import decode_image, image_size, jpeg
from distilhash.data.transforms import Preprocess
from distilhash.errors import require_train
from distilhash.server.workers import Answer, run_worker

CROP, THUMBNAIL, VIEW, SIZE = b"C", b"T", b"V", b"S"
THUMBNAIL_SIDE, VIEW_SIDE = 320, 2400  # pixels: the shorter side of a thumbnail, the longer one of a view
MAX_ASPECT = 3  # longer side / shorter side of a thumbnail; a panorama gets a smaller one

Outputs = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # pixels (1, S, S, 3) -> outputs (1, K)


def decoder(config: InputConfig) -> tuple[bytes, Answer]:
    """No greeting, and the function that turns a message into S * S * 3 bytes of pixels, a JPEG file, or a size."""
    preprocess = Preprocess(config)

    def answer(message: bytes) -> bytes:
        kind, content = message[:1], message[1:]
        if kind == CROP:
            return preprocess.crop([decode_image(content, "the image")]).tobytes()
        path = Path(os.fsdecode(content))
        if kind == SIZE:
            return b"%d %d" % image_size(path)
        if kind == VIEW:
            image = decode_image(path, path.name)
            return jpeg(image, VIEW_SIDE / max(image.size))
        image = decode_image(path, path.name, THUMBNAIL_SIDE)
        return jpeg(image, min(THUMBNAIL_SIDE / min(image.size), MAX_ASPECT * THUMBNAIL_SIDE / max(image.size)))

    return b"", answer


def encoder(path: str) -> tuple[bytes, Answer]:
    """The greeting for a hasher, and the function that turns S * S * 3 bytes into P.

    Raises:
        DistilhashError: there is no hasher, or it is damaged.
    """
    from distilhash.deploy.runtime import model_file

    model = model_file(path)
    fingerprint, config, outputs = _trained(path) if model is None else _exported(model)

    def answer(message: bytes) -> bytes:
        pixels = np.frombuffer(message, np.uint8).reshape(1, config.size, config.size, 3)
        return pack(outputs(pixels)).tobytes()

    answer(bytes(config.size**2 * 3))  # the first pass is slow
    return json.dumps({"fingerprint": fingerprint, "input": dataclasses.asdict(config)}).encode(), answer


def _exported(model: Path) -> tuple[str, InputConfig, Outputs]:
    from distilhash.deploy.runtime import INT8, ExportedHasher

    hasher = ExportedHasher.open(model.parent, int8=model.name == INT8)
    preprocess = Preprocess(hasher.input)
    return hasher.model_fingerprint, hasher.input, lambda pixels: hasher.run(preprocess.planes(pixels))


def _trained(path: str) -> tuple[str, InputConfig, Outputs]:
    require_train("a hasher that is not exported")
    import torch

    from distilhash.checkpoint import load_hasher
    from distilhash.models.backbone import fingerprint_of
    from distilhash.models.fold import folded

    hasher, _ = load_hasher(path)
    preprocess, backbone = Preprocess(hasher.input), folded(hasher.backbone)

    def outputs(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = hasher.head(torch.relu(backbone(preprocess.tensor(pixels)))).numpy()
        return found

    return fingerprint_of(hasher), hasher.input, outputs


if __name__ == "__main__":
    job, argument = sys.argv[1:]
    run_worker(lambda: decoder(InputConfig(**json.loads(argument))) if job == "decode" else encoder(argument))
