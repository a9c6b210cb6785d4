"""Images through a hasher to a table of packed codes.

Legend: N images, n images of a batch, K bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from distilhash.codes import CodeTable, pack
from distilhash.data.images import ImageSource
from distilhash.data.pipeline import BATCH_PIXELS, prefetch
from distilhash.data.preprocess import Preprocess
from distilhash.models.backbone import Backbone
from distilhash.models.folding import folded
from distilhash.models.hasher import Hasher
from distilhash.precision import usable

SAY_SECONDS = 5.0


def encode(
    images: ImageSource,
    indices: np.ndarray,
    hasher: Hasher,
    *,
    precision: str | None = None,
    provenance: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> CodeTable:
    """Codes of ``images[indices]``, in that order: the sign of each output, packed. Zero counts as -1.

    ``precision`` is that of the backbone; left out: the one it was trained in, where the processor multiplies it.
    """
    packed, done, said = [], 0, time.monotonic()
    for outputs_nK in outputs(images, indices, hasher, precision=precision):
        packed.append(pack(outputs_nK))
        done += len(outputs_nK)
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            say(f"encoded {done:,}/{len(indices):,}")
    return table(np.concatenate(packed), images, indices, hasher.num_bits, provenance or {})


def outputs(
    images: ImageSource, indices: np.ndarray, hasher: Hasher, *, precision: str | None = None
) -> Iterator[np.ndarray]:
    """The hasher's outputs (n, K) of ``images[indices]``, batch after batch, in that order."""
    return _through(images, indices, hasher.backbone, hasher.head, precision or usable(hasher.precision))


def head_inputs(images: ImageSource, indices: np.ndarray, backbone: Backbone) -> np.ndarray:
    """What the head of a hasher on this backbone is given of ``images[indices]``: features (N, D), none below zero."""
    return np.concatenate(list(_through(images, indices, backbone, nn.Identity(), "float32")))


def _through(
    images: ImageSource, indices: np.ndarray, backbone: Backbone, head: nn.Module, precision: str
) -> Iterator[np.ndarray]:
    """Backbone, ReLU and head of ``images[indices]``, batch after batch, in that order.

    Each core takes a batch of its own all the way from the files to the outputs. So nothing waits: neither the network
    for pixels nor, as in a network that is spread over the cores, one core for the others after every layer.
    """
    pixels = Preprocess(backbone.input)
    backbone.eval()
    head.eval()
    network = folded(backbone, precision=precision)
    cores = torch.get_num_threads()
    size = max(1, min(BATCH_PIXELS // pixels.config.size**2, -(-len(indices) // cores)))

    def outputs_of(block: np.ndarray) -> np.ndarray:
        batch = pixels.tensor(pixels.read(images, block))
        with torch.inference_mode():
            found: np.ndarray = head(torch.relu(network(batch))).numpy()
        return found

    blocks = [indices[start : start + size] for start in range(0, len(indices), size)]
    return prefetch(outputs_of, blocks, ahead=2 * cores, threads=cores)


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
