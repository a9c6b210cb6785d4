"""Iterative Quantization: features to codes without labels, in NumPy.

Gong and Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes", CVPR 2011: principal
components, turned so that they lie as near as can be to the corners of a cube.

Legend: N images, D features, K bits, P principal components.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from distilhash.errors import DistilhashError

TURNS = 50  # of codes and rotation, as in the paper

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
    axes_DP = principal_axes(z_ND, num_bits)  # section 2.1
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


def principal_axes(z_ND: Floats, count: int) -> Floats:
    """The directions (D, P) of the largest variance of centred rows, ``count`` or fewer; unit columns.

    The largest number of a column is positive, whatever library finds them.
    """
    if len(z_ND) >= z_ND.shape[1]:
        axes_DP = np.linalg.eigh(z_ND.T @ z_ND)[1][:, -count:]
    else:  # by the products of images: those of dimensions would have many eigenvalues of zero, and may not converge
        values_N, vectors_NN = np.linalg.eigh(z_ND @ z_ND.T)
        kept_N = values_N[-count:] > 1e-9 * values_N[-1]
        axes_DP = z_ND.T @ vectors_NN[:, -count:][:, kept_N]
        axes_DP = axes_DP / np.linalg.norm(axes_DP, axis=0)
    if not axes_DP.size:
        return axes_DP
    largest_P = np.take_along_axis(axes_DP, np.abs(axes_DP).argmax(axis=0)[None], axis=0)[0]
    return axes_DP * np.where(largest_P < 0, -1.0, 1.0)


def _signs(outputs_NK: Floats) -> Floats:
    return np.where(outputs_NK > 0, 1.0, -1.0)  # zero as in a code


def _error(codes_NK: Floats, outputs_NK: Floats) -> float:
    return float(np.square(codes_NK - outputs_NK).sum() / len(codes_NK))
