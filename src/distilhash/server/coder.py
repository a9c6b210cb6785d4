"""The worker process that holds the hasher: framed pixels to a packed code.

Started as ``python -m distilhash.server.coder HASHER``: a hasher's place, or the model file of an exported one, for
which PyTorch is not imported. Its greeting is JSON: "num_bits", "fingerprint" and "input",
the InputConfig by which images are framed. It never sees a file that somebody else made: ``decoder`` does.

Shapes: S pixels, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.codes import pack
from distilhash.data.transforms import Preprocess
from distilhash.deploy.runtime import INT8, ExportedHasher, model_file
from distilhash.runtime import keep_memory
from distilhash.server.pipes import serve_pipe


def main() -> None:
    """Answer until the pipe is closed."""
    keep_memory()
    serve_pipe(lambda: opened(sys.argv[1]))


def opened(path: str) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The greeting of this hasher, and what turns S * S * 3 bytes into P. Errors: DistilhashError where there is none."""
    model = model_file(path)
    about, answer = _of_torch(path) if model is None else _of_export(model)
    size = about["input"]["size"]
    answer(bytes(size * size * 3))  # the first time is slow
    return json.dumps(about).encode(), answer


def _of_export(model: Path) -> tuple[dict[str, Any], Callable[[bytes], bytes]]:
    hasher = ExportedHasher.open(model.parent, int8=model.name == INT8)
    preprocess, size = Preprocess(hasher.input), hasher.input.size
    about = {
        "num_bits": hasher.num_bits,
        "fingerprint": hasher.model_fingerprint,
        "input": dataclasses.asdict(hasher.input),
    }

    def answer(message: bytes) -> bytes:
        framed = np.frombuffer(message, np.uint8).reshape(1, size, size, 3)
        return pack(hasher.run(preprocess.planes(framed))).tobytes()

    return about, answer


def _of_torch(path: str) -> tuple[dict[str, Any], Callable[[bytes], bytes]]:
    import torch

    from distilhash.checkpoint import load_hasher
    from distilhash.models.backbone import fingerprint_of
    from distilhash.models.fold import folded

    hasher, _ = load_hasher(path)
    preprocess, backbone = Preprocess(hasher.input), folded(hasher.backbone)
    size = preprocess.config.size
    about = {
        "num_bits": hasher.num_bits,
        "fingerprint": fingerprint_of(hasher),
        "input": dataclasses.asdict(hasher.input),
    }

    def answer(message: bytes) -> bytes:
        framed = np.frombuffer(message, np.uint8).reshape(1, size, size, 3)
        with torch.inference_mode():
            outputs_1K = hasher.head(torch.relu(backbone(preprocess.tensor(framed)))).numpy()
        return pack(outputs_1K).tobytes()

    return about, answer


if __name__ == "__main__":
    main()
