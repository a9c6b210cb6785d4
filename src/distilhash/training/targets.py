"""What the student is asked to match: three functions of the frozen teacher's features, none of which needs labels.

"raw"           the features themselves, by mean squared error (arXiv 2207.09070, section 3.1)
"standardised"  each dimension z-scored over the unlabelled images: a raw ReLU feature is mostly its mean
"prototypes"    which of a few hundred prototypes (k-means centroids of the teacher's features) an image is near, as
                a soft assignment, by cross-entropy. A squared error spends most of a compact student on dimensions
                that tell no two images apart; this asks only who is near whom.

Legend: N images, D teacher dimensions, P principal components, T target dimensions (prototypes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distilhash.config import DistillConfig
from distilhash.errors import unknown_name
from distilhash.losses import distillation_mse

COMPONENTS = 128  # principal components in which prototypes are sought; the rest is mostly noise
SAMPLE = 20_000  # rows that components and prototypes are fitted to
ITERATIONS = 15  # of k-means
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Target:
    """How teacher features (N, D) become targets (N, ``dim``), and the loss of outputs (N, ``dim``) against them."""

    dim: int
    of: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]


def create_target(
    features_ND: np.ndarray, rows: np.ndarray, config: DistillConfig, device: torch.device = CPU
) -> Target:
    """The target of distillation that ``config.loss`` names, fitted on the CPU.

    Args:
        features_ND, rows: the teacher's, perhaps memory-mapped, and which of them it is fitted to.
        config: of distillation.
        device: of the features that it is then asked about.

    Raises:
        DistilhashError: an unknown loss.
    """
    if config.loss not in TARGETS:
        raise unknown_name("distillation loss", config.loss, TARGETS)
    return TARGETS[config.loss](features_ND, rows, config, device)


def _raw(features_ND: np.ndarray, rows: np.ndarray, config: DistillConfig, device: torch.device) -> Target:
    return Target(features_ND.shape[1], lambda f_ND: f_ND, distillation_mse)


def _standardised(features_ND: np.ndarray, rows: np.ndarray, config: DistillConfig, device: torch.device) -> Target:
    mean_D, std_D = (tensor.to(device) for tensor in _statistics(features_ND, rows))
    return Target(features_ND.shape[1], lambda f_ND: (f_ND - mean_D) / std_D, distillation_mse)


def _prototypes(features_ND: np.ndarray, rows: np.ndarray, config: DistillConfig, device: torch.device) -> Target:
    direction, centres_TP = find_prototypes(features_ND, rows, config.prototypes, config.seed, device)

    def loss(outputs_NT: Tensor, targets_NT: Tensor) -> Tensor:
        return F.cross_entropy(outputs_NT, targets_NT.softmax(dim=1))

    return Target(len(centres_TP), lambda f_ND: direction(f_ND) @ centres_TP.T / config.temperature, loss)


def find_prototypes(
    features_ND: np.ndarray, rows: np.ndarray, count: int, seed: int, device: torch.device = CPU
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """At most ``count`` prototypes of these rows; fewer where there are fewer than eight rows for each.

    Returns:
        What makes unit vectors (N, P) of features (N, D) on the device, and the prototypes (T, P) there.
    """
    mean_D, std_D = _statistics(features_ND, rows)
    generator = np.random.default_rng((seed, 11))
    sample = np.sort(generator.permutation(rows)[:SAMPLE])
    z_ND = (torch.from_numpy(features_ND[sample]) - mean_D) / std_D
    axes_DP = principal_axes(z_ND, COMPONENTS)
    points_NP = F.normalize(z_ND @ axes_DP, dim=1)
    count = min(count, max(2, len(points_NP) // 8))
    start = np.sort(generator.permutation(len(points_NP))[:count])
    centres_TP = _spherical_k_means(points_NP, points_NP[start])
    mean_D, std_D, axes_DP, centres_TP = (tensor.to(device) for tensor in (mean_D, std_D, axes_DP, centres_TP))

    def direction(f_ND: Tensor) -> Tensor:
        return F.normalize((f_ND - mean_D) / std_D @ axes_DP, dim=1)

    return direction, centres_TP


def principal_axes(z_ND: Tensor, count: int) -> Tensor:
    """The directions (D, P) of the largest variance of centred rows, ``count`` or fewer; unit columns."""
    z_ND = z_ND.double()
    if len(z_ND) >= z_ND.shape[1]:
        axes_DP = torch.linalg.eigh(z_ND.T @ z_ND)[1][:, -count:]
    else:  # by the products of images: those of dimensions would have many eigenvalues of zero, and may not converge
        values_N, vectors_NN = torch.linalg.eigh(z_ND @ z_ND.T)
        kept_N = values_N[-count:] > 1e-9 * values_N[-1]
        axes_DP = F.normalize(z_ND.T @ vectors_NN[:, -count:][:, kept_N], dim=0)
    axes: Tensor = axes_DP.float()
    return axes


TARGETS = {"raw": _raw, "standardised": _standardised, "prototypes": _prototypes}


def _spherical_k_means(points_NP: Tensor, centres_TP: Tensor) -> Tensor:
    """Centroids of unit vectors by cosine; one that loses every point stays where it was."""
    for _ in range(ITERATIONS):
        nearest_N = (points_NP @ centres_TP.T).argmax(dim=1)
        sums_TP = torch.zeros_like(centres_TP).index_add_(0, nearest_N, points_NP)
        alive_T1 = sums_TP.norm(dim=1, keepdim=True) > 0
        centres_TP = torch.where(alive_T1, F.normalize(sums_TP, dim=1), centres_TP)
    return centres_TP


def _statistics(features_ND: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) over the rows; read in blocks, as the cache may be larger than memory."""
    blocks = [rows[start : start + 4096] for start in range(0, len(rows), 4096)]
    mean_D = sum(features_ND[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(rows)
    square_D = sum(np.square(features_ND[block] - mean_D).sum(axis=0) for block in blocks) / len(rows)
    # A dimension that never moves (a dead ReLU) carries nothing: it is left at zero, not blown up.
    std_D = np.where(square_D > 1e-12, np.sqrt(square_D), 1.0)
    return torch.from_numpy(mean_D).float(), torch.from_numpy(std_D).float()
