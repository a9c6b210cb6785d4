"""The PyTorch hasher as an encoder: imported only where one is opened, so that an exported one runs without PyTorch.

Shapes: N images of a call, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from distilhash.checkpoint import load_hasher
from distilhash.codes import pack
from distilhash.inference import outputs
from distilhash.models.backbone import fingerprint_of
from distilhash.photos.encoder import Encoded, PhotoFiles
from distilhash.runtime import keep_memory

keep_memory()  # before the first network runs

CPU = torch.device("cpu")


class TorchEncoder:
    """A hasher's run directory as an encoder. Errors: DistilhashError where there is none."""

    def __init__(self, path: str | Path) -> None:
        self._hasher, _ = load_hasher(path)
        self.num_bits: int = self._hasher.num_bits
        self.fingerprint = fingerprint_of(self._hasher)
        self.path = str(Path(path).absolute())

    def encode(self, paths: Sequence[str]) -> Encoded:
        """The codes of these files, in their order."""
        files = PhotoFiles(paths)
        if not paths:
            return Encoded(np.empty((0, -(-self.num_bits // 8)), np.uint8), {})
        # In float32 on the processor, so that an index may move to another machine and its photos keep their codes.
        outputs_NK = outputs(files, np.arange(len(paths)), self._hasher, precision="float32", device=CPU)
        found = [pack(block) for block in outputs_NK]
        return Encoded(np.concatenate(found), files.failures)
