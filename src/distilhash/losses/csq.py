"""Central Similarity Quantization: every class owns a code, and its images are drawn to it.

Yuan, Wang, Zhang, Tay, Jie, Liu, Feng, "Central Similarity Quantization for Efficient Image and Video Retrieval" (CVPR
2020): hash centres by Algorithm 1 (Hadamard rows, else Bernoulli draws), the central similarity loss L_C and the
quantization loss L_Q. The published code (satoru2001/CUKDFIR at d9a60ee) squares the distance of |tanh u| to 1 and
takes means; ours agrees with its values and gradients within 1e-6. It cannot make centres of 48 bits; these can.

Centres are NumPy arrays of -1/+1 in float32, made once before training.

Shapes: N images, C classes, K bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distilhash.config import HashConfig
from distilhash.errors import DistilhashError, unknown_name
from distilhash.losses.frameworks import Loss, register


def csq_loss(outputs_NK: Tensor, centres_NK: Tensor | np.ndarray, quantization_weight: float = 1e-4) -> Tensor:
    """Central similarity plus the weighted quantization loss, L_C + lambda L_Q.

    Args:
        outputs_NK: the network's outputs before tanh; half precision is computed in float32.
        centres_NK: the centre (-1/+1) of each image.
        quantization_weight: lambda.

    Raises:
        DistilhashError: the two differ in shape, or are empty.
    """
    u_NK = outputs_NK.float() if outputs_NK.element_size() < 4 else outputs_NK
    centres_NK = torch.as_tensor(centres_NK, dtype=u_NK.dtype, device=u_NK.device)
    if u_NK.ndim != 2 or u_NK.shape != centres_NK.shape or u_NK.numel() == 0:
        raise DistilhashError(
            "CSQ needs outputs (N, K) and one centre (N, K) for each image",
            f"outputs {tuple(u_NK.shape)} and centres {tuple(centres_NK.shape)}",
            "pick each image's centre first: centres_CK[classes], or multi_label_centres(labels_NC, centres_CK)",
        )
    # L_C. As (tanh(u) + 1) / 2 = sigmoid(2u), the cross-entropy is taken of logits: a saturated bit keeps its gradient.
    central = F.binary_cross_entropy_with_logits(2 * u_NK, (centres_NK + 1) / 2)
    quantization = (u_NK.tanh().abs() - 1).square().mean()  # L_Q
    return central + quantization_weight * quantization


def hadamard_centres(num_classes: int, num_bits: int) -> np.ndarray:
    """The first C rows of Sylvester's H and then of -H (Algorithm 1): any two differ in K/2 bits, or in all.

    Returns:
        (C, K) float32 of -1/+1.

    Raises:
        DistilhashError: K is no power of two, or C is larger than 2K.
    """
    _check_counts(num_classes, num_bits)
    if not _hadamard_exists(num_classes, num_bits):
        lengths = [1 << power for power in range(32) if num_classes <= 2 << power]
        below = [str(bits) for bits in lengths if bits < num_bits]
        above = [str(bits) for bits in lengths if bits > num_bits]
        raise DistilhashError(
            "Hadamard centres need a power of two of bits, and at most twice as many classes as bits",
            f"{num_classes} classes and {num_bits} bits",
            f"ask for {' or '.join(below[-1:] + above[:1])} bits, or for 'bernoulli' centres",
        )
    # Sylvester's matrix: entry (i, j) is the parity of the bits that i and j share.
    shared_KK = np.arange(num_bits)[:, None] & np.arange(num_bits)
    H_KK = np.where(np.bitwise_count(shared_KK) % 2 == 0, 1, -1).astype(np.float32)
    return np.concatenate([H_KK, -H_KK])[:num_classes]


def spread_hadamard_centres(num_classes: int, num_bits: int) -> np.ndarray:
    """Hadamard centres in an order that wastes no bit: as far apart as the first C rows, with distinct columns.

    The first 10 rows have only 16 distinct columns at any length, so at 64 bits each column occurs four times. The
    rows 1, 2, 4, ..., K/2 generate all others, so with them in front, log2(K) classes already have K distinct columns.
    """
    hadamard_centres(num_classes, num_bits)  # refuses what does not exist
    rows_RK = hadamard_centres(2 * num_bits, num_bits)
    generators = [1 << power for power in range(num_bits.bit_length() - 1)]
    others = [row for row in range(2 * num_bits) if row not in generators]
    return rows_RK[(generators + others)[:num_classes]]


def bernoulli_centres(num_classes: int, num_bits: int, seed: int = 0) -> np.ndarray:
    """Fair coin flips, chosen far apart (Algorithm 1's other branch), for any length.

    Each centre in turn is the candidate farthest from those already chosen, out of one seeded pool: all codes up to 12
    bits, else 4096 draws or 2 for each class.

    Raises:
        DistilhashError: so few bits that two classes would share a centre.
    """
    _check_counts(num_classes, num_bits)
    rng = np.random.default_rng(seed)
    if num_bits <= 12:
        codes_P = rng.permutation(1 << num_bits)
        bits_PK = (codes_P[:, None] >> np.arange(num_bits)) & 1
    else:
        bits_PK = rng.integers(0, 2, size=(max(4096, 2 * num_classes), num_bits))
    pool_PK = (2 * bits_PK - 1).astype(np.float32)

    chosen = np.zeros(num_classes, dtype=np.int64)
    nearest_P = np.full(len(pool_PK), np.inf, dtype=np.float32)  # distance to the nearest centre chosen so far
    for c in range(1, num_classes):
        nearest_P = np.minimum(nearest_P, (num_bits - pool_PK @ pool_PK[chosen[c - 1]]) / 2)
        chosen[c] = nearest_P.argmax()
        if nearest_P[chosen[c]] == 0:
            got = f"{num_classes} classes and {num_bits} bits"
            raise DistilhashError("some classes would share a centre", got, "ask for more bits")
    return pool_PK[chosen]


def _auto_centres(num_classes: int, num_bits: int, seed: int) -> np.ndarray:
    if _hadamard_exists(num_classes, num_bits):
        return hadamard_centres(num_classes, num_bits)
    return bernoulli_centres(num_classes, num_bits, seed)


CENTRES: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "auto": _auto_centres,  # Hadamard where it exists, else Bernoulli: Algorithm 1
    "hadamard": lambda num_classes, num_bits, seed: hadamard_centres(num_classes, num_bits),
    "spread": lambda num_classes, num_bits, seed: spread_hadamard_centres(num_classes, num_bits),
    "bernoulli": bernoulli_centres,
}


def hash_centres(num_classes: int, num_bits: int, seed: int = 0, kind: str = "auto") -> np.ndarray:
    """One code of -1/+1 for each class, (C, K) float32; ``kind`` is a key of CENTRES, ``seed`` that of Bernoulli draws.

    Raises:
        DistilhashError: an unknown kind, or counts for which this kind does not exist.
    """
    if kind not in CENTRES:
        raise unknown_name("kind of centres", kind, CENTRES)
    return CENTRES[kind](num_classes, num_bits, seed)


def multi_label_centres(
    labels_NC: np.ndarray | Tensor,
    centres_CK: np.ndarray | Tensor,
    seed: int = 0,
    tie_break_K: np.ndarray | Tensor | None = None,
) -> np.ndarray:
    """The bitwise majority vote of the centres of each image's labels (0/1).

    An image without a label ties in every bit and gets the tie-breaking centre, as in the published code.

    Args:
        labels_NC: 0/1.
        centres_CK: of the same classes.
        seed: of the tie-breaking centre, where none is given.
        tie_break_K: the centre (-1/+1, or 0/1) that decides tied bits.

    Returns:
        (N, K) float32 of -1/+1.

    Raises:
        DistilhashError: labels, centres and tie-breaking centre do not fit each other.
    """
    labels_NC, centres_CK = np.asarray(labels_NC), np.asarray(centres_CK)
    if labels_NC.ndim != 2 or centres_CK.ndim != 2 or labels_NC.shape[1] != len(centres_CK):
        raise DistilhashError(
            "the vote needs 0/1 labels (N, C) and centres (C, K) of the same classes",
            f"labels {labels_NC.shape} and centres {centres_CK.shape}",
        )
    num_bits = centres_CK.shape[1]
    if tie_break_K is None:
        tie_break_K = np.random.default_rng(seed).integers(0, 2, size=(num_bits,))
    tied_K = np.where(np.asarray(tie_break_K) > 0, 1, -1)
    if tied_K.shape != (num_bits,):
        raise DistilhashError(f"the tie-breaking centre needs {num_bits} bits, as the centres have", tied_K.shape)
    votes_NK = labels_NC.astype(np.float32) @ centres_CK.astype(np.float32)
    return np.where(votes_NK == 0, tied_K, np.sign(votes_NK)).astype(np.float32)


@register("csq")
def _csq(labels_NC: Tensor, config: HashConfig) -> Loss:
    weight = 1e-4 if config.quantization_weight is None else config.quantization_weight  # as published
    centres_CK = hash_centres(labels_NC.shape[1], config.bits, config.seed, kind=config.centres)
    centres_NK = torch.from_numpy(multi_label_centres(labels_NC.cpu().numpy(), centres_CK, config.seed))
    centres_NK = centres_NK.to(labels_NC.device)
    return lambda outputs_nK, _, indices_n: csq_loss(outputs_nK, centres_NK[indices_n], weight)


def _hadamard_exists(num_classes: int, num_bits: int) -> bool:
    return num_bits & (num_bits - 1) == 0 and num_classes <= 2 * num_bits


def _check_counts(num_classes: int, num_bits: int) -> None:
    if num_classes < 1 or num_bits < 1:
        got = f"{num_classes} classes and {num_bits} bits"
        raise DistilhashError("centres need at least one class and one bit", got)
