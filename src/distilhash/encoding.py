"""Images through a hasher to a table of packed codes.

Legend: N images, K bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from distilhash.codes import CodeTable, pack
from distilhash.data.images import ImageSource
from distilhash.data.pipeline import prefetch
from distilhash.data.preprocess import Preprocess
from distilhash.models.folding import folded
from distilhash.models.hasher import Hasher

BATCH = 250  # images a forward pass


def encode(
    images: ImageSource,
    indices: np.ndarray,
    hasher: Hasher,
    *,
    provenance: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> CodeTable:
    """Codes of ``images[indices]``, in that order: the sign of each output, packed. Zero counts as -1."""
    pixels = Preprocess(hasher.input)
    size = BATCH if pixels.config.size <= 64 else 32  # about the same memory at every input size
    blocks = [indices[start : start + size] for start in range(0, len(indices), size)]
    packed = []
    hasher.eval()
    backbone = folded(hasher.backbone)
    for done, batch in enumerate(
        prefetch(lambda block: pixels(images.read(block, pixels.least_side)), blocks), start=1
    ):
        with torch.inference_mode():
            packed.append(pack(hasher.head(torch.relu(backbone(batch))).numpy()))
        if done % 20 == 0:
            say(f"encoded {min(done * size, len(indices)):,}/{len(indices):,}")
    return table(np.concatenate(packed), images, indices, hasher.num_bits, provenance or {})


def encode_features(
    features_ND: np.ndarray,
    images: ImageSource,
    indices: np.ndarray,
    hasher: Hasher,
    *,
    provenance: dict[str, Any] | None = None,
) -> CodeTable:
    """The same where the backbone's features of ``images[indices]`` are known already: only the head runs."""
    with torch.inference_mode():
        outputs_NK = hasher.head(torch.relu(torch.from_numpy(np.array(features_ND)))).numpy()
    return table(pack(outputs_NK), images, indices, hasher.num_bits, provenance or {})


def table(
    packed: np.ndarray, images: ImageSource, indices: np.ndarray, num_bits: int, provenance: dict[str, Any]
) -> CodeTable:
    """A code table with the names and labels of these images."""
    return CodeTable(
        packed=packed,
        num_bits=num_bits,
        names=[images.names[int(index)] for index in indices],
        labels=None if images.labels is None else np.asarray(images.labels)[indices],
        provenance={"images": images.fingerprint, **provenance},
    )
