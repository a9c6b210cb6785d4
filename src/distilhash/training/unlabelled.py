"""Hashing without labels: codes from nothing but the features of a network.

"itq"     Iterative Quantization (``distilhash.itq``): the network stays as it is and gets a linear head, fitted in
          seconds.
"pseudo"  Central Similarity Quantization on pseudo-classes: k-means of the frozen teacher's features, found as the
          prototypes of distillation are, gives every image a class; ``hashing`` trains the network on those.

``benchmarks/labelfree.py`` measures both on CIFAR-10, where labels only score. "auto" is ITQ.

Legend: N images, D features, K bits, P principal components, T clusters.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from distilhash.data.sources import Images, ImageSource
from distilhash.itq import itq
from distilhash.models.backbone import Backbone
from distilhash.models.hasher import HasherNetwork, create_hasher
from distilhash.training.targets import find_prototypes

AUTO = "itq"
SAMPLE = 20_000  # rows that axes and rotation are fitted to
BLOCK = 4096  # rows read at a time of a cache that may be larger than memory


def itq_hasher(backbone: Backbone, features_ND: np.ndarray, num_bits: int, seed: int = 0) -> HasherNetwork:
    """A hasher on a backbone that stays as it is, its head fitted to features that the backbone gives of some images.

    At most SAMPLE rows are used, drawn by the seed. Negative features count as zero, as a hasher's ReLU makes them.
    """
    rows = np.random.default_rng((seed, 12)).permutation(len(features_ND))[:SAMPLE]
    found = itq(np.maximum(features_ND[np.sort(rows)], 0), num_bits, seed)
    hasher = create_hasher(backbone, num_bits, freeze_backbone=True)
    with torch.no_grad():
        hasher.head.weight.copy_(torch.from_numpy(found.weight))
        hasher.head.bias.copy_(torch.from_numpy(found.bias))
    return hasher.eval()


def pseudo_classes(
    features_ND: np.ndarray, rows: NDArray[np.int64], clusters: int, seed: int = 0
) -> NDArray[np.int64]:  # fmt: skip
    """A class for each of these rows of a teacher's features: the nearest of ``clusters`` prototypes, or of fewer."""
    direction, centres_TP = find_prototypes(features_ND, rows, clusters, seed)
    blocks = (torch.from_numpy(features_ND[rows[start : start + BLOCK]]) for start in range(0, len(rows), BLOCK))
    nearest: NDArray[np.int64] = torch.cat([(direction(f_ND) @ centres_TP.T).argmax(dim=1) for f_ND in blocks]).numpy()
    return nearest


class PseudoLabelled(ImageSource):
    """A source whose labels are classes that nobody gave: its own are never asked for."""

    def __init__(self, source: ImageSource, indices: NDArray[np.int64], classes_N: NDArray[np.int64]) -> None:
        self.source = source
        self.names = source.names
        self.fingerprint = source.fingerprint
        self.decodes = source.decodes
        self.class_names = [f"cluster {number}" for number in range(int(classes_N.max()) + 1)]
        self.labels = np.zeros(len(source), np.int64)
        self.labels[indices] = classes_N

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:
        """(N, 16), as its source has them."""
        return self.source.digests

    def read(self, indices: ArrayLike) -> Images:
        """The images of these indices, as their source has them."""
        return self.source.read(indices)
