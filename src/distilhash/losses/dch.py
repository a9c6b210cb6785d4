"""Deep Cauchy Hashing: similar images fall within a small Hamming radius of each other.

Cao, Long, Liu, Wang, "Deep Cauchy Hashing for Hamming Space Retrieval" (CVPR 2018). Equation numbers below are the
paper's. Where the paper writes a sum, the published code (satoru2001/CUKDFIR at d9a60ee) takes a mean; it counts an
image as a pair with itself; and it bounds the cosine at 0.99, so that the distance of such a pair is not zero. All
three are kept: values and gradients agree with the published numbers within 1e-6.

Shapes: N images of a batch, K bits, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distilhash.config import HashConfig
from distilhash.errors import DistilhashError
from distilhash.losses.frameworks import Loss, register

LARGEST_COSINE = 0.99  # log(d) has no finite gradient at d = 0
SMALLEST_NORM = 1e-4  # of a product of two norms: an output of zeros is orthogonal to everything


def dch_loss(
    outputs_NK: Tensor, labels_NC: Tensor | np.ndarray, gamma: float = 20.0, quantization_weight: float = 0.1
) -> Tensor:
    """The Cauchy cross-entropy plus the weighted Cauchy quantization loss (eq. 8 and 9).

    Args:
        outputs_NK: the network's real outputs, before the sign; half precision is computed in float32.
        labels_NC: 0/1 labels; two images are similar where they share a label.
        gamma: scale of the Cauchy distribution, bits of Hamming distance.
        quantization_weight: lambda.

    Raises:
        DistilhashError: shapes do not fit, or a parameter is out of range.
    """
    labels_NC = torch.as_tensor(labels_NC, device=outputs_NK.device)
    if outputs_NK.ndim != 2 or labels_NC.ndim != 2 or len(outputs_NK) != len(labels_NC) or outputs_NK.numel() == 0:
        raise DistilhashError(
            "DCH needs outputs (N, K) and 0/1 labels (N, C) of the same images",
            f"outputs {tuple(outputs_NK.shape)} and labels {tuple(labels_NC.shape)}",
            "turn class numbers into 0/1 rows first, as torch.nn.functional.one_hot does",
        )
    if not gamma > 0 or not quantization_weight >= 0:
        got = f"gamma {gamma} and quantization_weight {quantization_weight}"
        raise DistilhashError("DCH needs gamma > 0 and quantization_weight >= 0", got)

    # Mixed precision would take the cosines in bf16, whose step below 1 is 0.004: too coarse for small distances.
    with torch.autocast(outputs_NK.device.type, enabled=False):
        u_NK = outputs_NK.float() if outputs_NK.element_size() < 4 else outputs_NK
        y_NC = labels_NC.to(u_NK.dtype)
        similar_NN = (y_NC @ y_NC.T > 0).to(u_NK.dtype)

        # Eq. 2: a rare relation weighs more. Where one of the two is absent, the other weighs 1, and the absent one's
        # infinite weight meets no pair.
        pairs = similar_NN.numel()
        similar = similar_NN.sum()
        weight_NN = torch.where(similar_NN > 0, pairs / similar, pairs / (pairs - similar))

        # Eq. 8, with the Cauchy probability gamma / (gamma + d) of eq. 6: s log(d / gamma) + log(1 + gamma / d).
        distance_NN = _hamming_like(u_NK, u_NK)
        cross_entropy_NN = similar_NN * torch.log(distance_NN / gamma) + torch.log1p(gamma / distance_NN)

        # Eq. 9, from the prior of eq. 7: the outputs' magnitudes are drawn to the corner (1, ..., 1).
        to_corner_N1 = _hamming_like(u_NK.abs(), torch.ones_like(u_NK[:1]))
        quantization_N1 = torch.log1p(to_corner_N1 / gamma)

        return (weight_NN * cross_entropy_NN).mean() + quantization_weight * quantization_N1.mean()


@register("dch")
def _dch(labels_NC: Tensor, config: HashConfig) -> Loss:
    weight = 0.1 if config.quantization_weight is None else config.quantization_weight  # as published
    return lambda outputs_nK, labels_nC, _: dch_loss(outputs_nK, labels_nC, config.gamma, weight)


def _hamming_like(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """K/2 (1 - cos), which is the Hamming distance where both are codes of -1/+1; (M, N), in bits."""
    norms_MN = torch.outer(torch.linalg.vector_norm(a_MK, dim=1), torch.linalg.vector_norm(b_NK, dim=1))
    cosine_MN = a_MK @ b_NK.T / norms_MN.clamp(min=SMALLEST_NORM)
    return a_MK.shape[1] / 2 * (1 - cosine_MN.clamp(max=LARGEST_COSINE))
