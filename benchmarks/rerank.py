"""The nearest codes in a better order: by the features that the codes were made from, stored in 4 bits each.

Features that are never negative, as those behind a ReLU, are many small numbers and a few large ones. So the levels of
a feature are the squares 0, 1, 4 ... 225 of what is stored, as shares of the largest feature of the image. Nothing is
fitted, so photos that are added later are stored as well as the first ones, and 1,280 features take 640 bytes.

Shapes: N images, D features, B = ceil(D / 2) bytes, C candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distilhash.codes import Bytes

LEVELS = 15

Floats = NDArray[np.float32]


def compress(features_ND: NDArray[np.floating]) -> Bytes:
    """Features as 4 bits each, packed (N, B); negative ones count as zero."""
    features_ND = np.maximum(np.asarray(features_ND, np.float32), 0)
    largest_N1 = features_ND.max(axis=1, keepdims=True, initial=0)
    levels_ND = np.rint(LEVELS * np.sqrt(features_ND / np.where(largest_N1 > 0, largest_N1, 1))).astype(np.uint8)
    if levels_ND.shape[1] % 2:
        levels_ND = np.pad(levels_ND, ((0, 0), (0, 1)))
    packed_NB: Bytes = levels_ND[:, ::2] << 4 | levels_ND[:, 1::2]
    return packed_NB


def decompress(packed_NB: Bytes) -> Floats:
    """Features (N, 2 * B) of unit length, near those that were compressed; zeros where all of them were."""
    squares_ND = np.empty((len(packed_NB), 2 * packed_NB.shape[1]), np.float32)
    squares_ND[:, ::2], squares_ND[:, 1::2] = packed_NB >> 4, packed_NB & LEVELS
    squares_ND *= squares_ND
    length_N1 = np.linalg.norm(squares_ND, axis=1, keepdims=True)
    length_N1[length_N1 == 0] = 1
    squares_ND /= length_N1
    return squares_ND


def similarities(query_D: NDArray[np.floating], packed_CB: Bytes) -> Floats:
    """The cosine (C,) of the angle between a query's features and those of each candidate."""
    query_D = np.maximum(np.asarray(query_D, np.float32), 0)
    length = float(np.linalg.norm(query_D)) or 1.0
    cosines_C: Floats = decompress(packed_CB)[:, : len(query_D)] @ (query_D / length)
    return cosines_C
