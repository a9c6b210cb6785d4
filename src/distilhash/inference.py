"""Images through a hasher to a table of packed codes.

Legend: N images, n images of a batch, S pixels, D features, K bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distilhash.codes import CodeTable, pack, packed_outputs
from distilhash.data.prefetch import BATCH_PIXELS, through
from distilhash.data.sources import ImageSource
from distilhash.data.transforms import Preprocess
from distilhash.device import batch_factor, current, on, sent, usable_precision
from distilhash.models.backbone import Backbone
from distilhash.models.fold import folded
from distilhash.models.hasher import HasherNetwork

Run = Callable[[ImageSource, np.ndarray], Iterator[np.ndarray]]


def encode(
    images: ImageSource, indices: np.ndarray, hasher: HasherNetwork, *, precision: str | None = None,
    provenance: dict[str, Any] | None = None,
) -> CodeTable:  # fmt: skip
    """Codes of ``images[indices]``, in that order: the sign of each output, packed. Zero counts as -1.

    Args:
        images, indices: the source, and which of its images.
        hasher: stays where it is.
        precision: of the backbone. None: the one it was trained in, where the device has it.
        provenance: added to the table's.

    Raises:
        UnreadableImage: an image cannot be decoded.
    """
    packed = packed_outputs(outputs(images, indices, hasher, precision=precision), hasher.num_bits, len(indices))
    return CodeTable.of(packed, hasher.num_bits, images, indices, provenance or {})


def outputs(
    images: ImageSource, indices: np.ndarray, hasher: HasherNetwork, *, precision: str | None = None,
    device: torch.device | None = None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """The hasher's outputs (n, K) of ``images[indices]``, batch after batch; ``device`` None: that of this process."""
    return prepared(hasher, precision=precision, device=device)(images, indices)


def prepared(hasher: HasherNetwork, *, precision: str | None = None, device: torch.device | None = None) -> Run:
    """outputs() of one hasher, which is folded once, for many calls on a few images each."""
    precision = precision or usable_precision(hasher.precision)
    return _prepared(hasher.backbone, hasher.head, precision, device or current())


def head_inputs(images: ImageSource, indices: np.ndarray, backbone: Backbone) -> np.ndarray:
    """What the head of a hasher on this backbone is given of ``images[indices]``: features (N, D), none below zero."""
    return np.concatenate(list(_prepared(backbone, nn.Identity(), "float32", current())(images, indices)))


def encode_features(
    features_ND: np.ndarray, images: ImageSource, indices: np.ndarray, hasher: HasherNetwork, *,
    provenance: dict[str, Any] | None = None,
) -> CodeTable:  # fmt: skip
    """Codes of ``images[indices]``, of which the backbone's features (N, D) are known: only the head runs."""
    with torch.inference_mode():
        features = torch.from_numpy(np.array(features_ND)).to(hasher.head.weight.device)
        outputs_NK = hasher.head(torch.relu(features)).cpu().numpy()
    return CodeTable.of(pack(outputs_NK), hasher.num_bits, images, indices, provenance or {})


def _prepared(backbone: Backbone, head: nn.Module, precision: str, device: torch.device) -> Run:
    """Backbone, ReLU and head of ``images[indices]``, batch after batch, in that order."""
    pixels = Preprocess(backbone.input)
    backbone.eval()
    head.eval()
    shared = device.type != "cpu"
    network = on(folded(backbone, precision=precision), device)
    head = on(head, device)

    def outputs_of(batch_N3SS: Tensor) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = head(torch.relu(network(batch_N3SS))).cpu().numpy()
        return found

    def run(images: ImageSource, indices: np.ndarray) -> Iterator[np.ndarray]:
        parts = 1 if shared else torch.get_num_threads()
        size = max(1, min(batch_factor(device) * BATCH_PIXELS // pixels.config.size**2, -(-len(indices) // parts)))

        def batch_of(block: np.ndarray) -> Tensor:
            return sent(pixels.tensor(pixels.read(images, block)), device)

        blocks = [indices[start : start + size] for start in range(0, len(indices), size)]
        return through(batch_of, outputs_of, blocks, shared=shared)

    return run
