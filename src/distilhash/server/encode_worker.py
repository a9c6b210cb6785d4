"""The worker process that holds the hasher: pixels of the input size to a packed code.

Run as ``python -m distilhash.server.encode_worker HASHER``, with the path of a hasher or of the model file of an
exported one, for which PyTorch is not imported. The greeting is JSON: "fingerprint" and "input", the InputConfig that
the decode worker needs. This process never sees a foreign file; the decode worker does.

Shapes: S input size in pixels, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilhash.codes import pack
from distilhash.config import InputConfig
from distilhash.data.transforms import Preprocess
from distilhash.deploy.runtime import INT8, ExportedHasher, model_file
from distilhash.server.workers import Answer, run_worker

Outputs = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # pixels (1, S, S, 3) -> outputs (1, K)


def open_hasher(path: str) -> tuple[bytes, Answer]:
    """The greeting for a hasher, and the function that turns S * S * 3 bytes into P.

    Raises:
        DistilhashError: there is no hasher, or it is damaged.
    """
    model = model_file(path)
    fingerprint, config, outputs = _trained(path) if model is None else _exported(model)

    def answer(message: bytes) -> bytes:
        pixels = np.frombuffer(message, np.uint8).reshape(1, config.size, config.size, 3)
        return pack(outputs(pixels)).tobytes()

    answer(bytes(config.size**2 * 3))  # the first pass is slow
    return json.dumps({"fingerprint": fingerprint, "input": dataclasses.asdict(config)}).encode(), answer


def _exported(model: Path) -> tuple[str, InputConfig, Outputs]:
    hasher = ExportedHasher.open(model.parent, int8=model.name == INT8)
    preprocess = Preprocess(hasher.input)
    return hasher.model_fingerprint, hasher.input, lambda pixels: hasher.run(preprocess.planes(pixels))


def _trained(path: str) -> tuple[str, InputConfig, Outputs]:
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
    run_worker(lambda: open_hasher(sys.argv[1]))
