"""Hashing without labels: codes from nothing but the features of a network.

"itq"     Iterative Quantization (Gong and Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary
          Codes", CVPR 2011): principal components, turned so that they lie as near as can be to the corners of a cube.
          The network stays as it is and gets a linear head, fitted in seconds.
"pseudo"  Central Similarity Quantization on pseudo-classes: k-means of the frozen teacher's features, found as the
          prototypes of distillation are, gives every image a class; ``hashing`` trains the network on those.

``benchmarks/labelfree.py`` measures both on CIFAR-10, where labels only score. "auto" is ITQ.

Legend: N images, D features, K bits, P principal components, T clusters.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from distilhash.data.sources import Images, ImageSource
from distilhash.errors import DistilhashError
from distilhash.models.backbone import Backbone
from distilhash.models.hasher import HasherNetwork, create_hasher
from distilhash.training.targets import find_prototypes, principal_axes

AUTO = "itq"
SAMPLE = 20_000  # rows that axes and rotation are fitted to
TURNS = 50  # of codes and rotation, as in the paper
BLOCK = 4096  # rows read at a time of a cache that may be larger than memory

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Itq:
    """A linear map whose signs are codes: ``features_ND @ weight.T + bias``."""

    weight: Floats  # (K, D)
    bias: Floats  # (K,)
    rotation: Floats  # (K, K)
    errors: list[float]  # the quantisation error of an image before the first turn and after each


def itq(features_ND: np.ndarray, num_bits: int, seed: int = 0, turns: int = TURNS) -> Itq:
    """Fit Iterative Quantization, from a first rotation of the seed.

    Few images have fewer components than bits: the other directions, in which further images differ, are drawn at
    random and orthogonal to them. Where the dimensions are too few, the rotation shares them out among all bits.

    Raises:
        DistilhashError: the features are no finite matrix, or the number of bits is not positive.
    """
    features_ND = np.asarray(features_ND, np.float64)
    if features_ND.ndim != 2 or len(features_ND) == 0 or not np.isfinite(features_ND).all():
        raise DistilhashError("ITQ needs finite features (N, D) of at least one image", f"shape {features_ND.shape}")
    if num_bits < 1:
        raise DistilhashError("a code has a positive whole number of bits", num_bits)
    generator = np.random.default_rng((seed, 13))
    mean_D = features_ND.mean(axis=0)
    z_ND = features_ND - mean_D
    axes_DP = principal_axes(torch.from_numpy(z_ND), num_bits).double().numpy()  # section 2.1
    lacking = min(num_bits, len(mean_D)) - axes_DP.shape[1]
    if lacking:
        axes_DP = np.linalg.qr(np.hstack([axes_DP, generator.normal(size=(len(mean_D), lacking))]))[0]
    axes_DK = np.pad(axes_DP, ((0, 0), (0, num_bits - axes_DP.shape[1])))
    v_NK = z_ND @ axes_DK
    rotation_KK = np.linalg.qr(generator.normal(size=(num_bits, num_bits)))[0]

    errors = []
    for _ in range(turns):  # Eq. 2, ||B - VR||^2, falls with either half of a turn
        codes_NK = _signs(v_NK @ rotation_KK)
        errors.append(_error(codes_NK, v_NK @ rotation_KK))
        left_KK, _, right_KK = np.linalg.svd(v_NK.T @ codes_NK)  # the orthogonal Procrustes problem
        rotation_KK = left_KK @ right_KK
    outputs_NK = v_NK @ rotation_KK
    errors.append(_error(_signs(outputs_NK), outputs_NK))
    scale = 1 / (np.abs(outputs_NK).mean() or 1.0)  # outputs of the size that a trained head gives; no sign changes
    weight_KD = scale * (axes_DK @ rotation_KK).T
    return Itq(weight_KD, -weight_KD @ mean_D, rotation_KK, errors)


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


def _signs(outputs_NK: Floats) -> Floats:
    return np.where(outputs_NK > 0, 1.0, -1.0)  # zero as in a code


def _error(codes_NK: Floats, outputs_NK: Floats) -> float:
    return float(np.square(codes_NK - outputs_NK).sum() / len(codes_NK))
