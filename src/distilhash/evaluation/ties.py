"""Average precision from counts: in expectation over all orders of tied images, in closed form.

Expected precision in a tie group of n images, r of them relevant, behind n0 images of which r0 are relevant. The
image at place i = 1..n is relevant with probability r / n; given that it is, each of the i - 1 before it is with
probability (r - 1) / (n - 1). So the first m places add to the sum of precisions at relevant ranks, on average,

    (r / n) * sum_{i=1..m} (r0 + 1 + (i - 1) (r - 1) / (n - 1)) / (n0 + i)                                    (1)
    = (r / n) * ((r0 + 1) S + (r - 1) / (n - 1) * (m - (n0 + 1) S)),   S = 1/(n0 + 1) + ... + 1/(n0 + m)      (2)

Shapes: Q queries, T distances.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def expected_average_precision(
    items_QT: Integers, relevant_QT: Integers, depth: int, denominator: str = "found"
) -> Floats:
    """Expected average precision over all orders of tied images (Eq. 2).

    Args:
        items_QT, relevant_QT: images, and relevant images, at each distance.
        depth: ranks that count.
        denominator: "found" gives the expectation of (sum of precisions) / (relevant images within the cut),
            "relevant" divides the expected sum by min(depth, all relevant images).

    Returns:
        (Q,) values; 0 where nothing relevant can be found.
    """
    before_QT = items_QT.cumsum(axis=1) - items_QT
    hits_before_QT = relevant_QT.cumsum(axis=1) - relevant_QT
    taken_QT = np.clip(depth - before_QT, 0, items_QT)  # of each tie group, the places within the cut: m of Eq. 1
    share_QT = relevant_QT / np.maximum(items_QT, 1)
    others_QT = (relevant_QT - 1) / np.maximum(items_QT - 1, 1)
    first_QT, rise_QT = _sums(before_QT, taken_QT)
    precisions_QT = share_QT * ((hits_before_QT + 1) * first_QT + others_QT * rise_QT)  # Eq. 2
    if denominator == "relevant":
        within_Q: Floats = precisions_QT.sum(axis=1) / np.clip(relevant_QT.sum(axis=1), 1, depth)
        return within_Q

    whole_QT = taken_QT == items_QT
    sum_Q = np.where(whole_QT, precisions_QT, 0).sum(axis=1)
    found_Q = np.where(whole_QT, relevant_QT, 0).sum(axis=1)
    expected_Q: Floats = sum_Q / np.maximum(found_Q, 1)
    # Where the cut falls inside a tie group (one a query at most), the number found is itself random: hypergeometric.
    # Given that h of the m places are relevant, they are any h of the m: Eq. 2 once more, with (n, r) = (m, h).
    for query, group in zip(*np.nonzero((taken_QT > 0) & ~whole_QT), strict=True):
        at = (query, group)
        m, before = taken_QT[at], hits_before_QT[at]
        h, probability = _hypergeometric(int(items_QT[at]), int(relevant_QT[at]), int(m))
        inside = h / m * ((before + 1) * first_QT[at] + (h - 1) / max(m - 1, 1) * rise_QT[at])
        ratio = (sum_Q[query] + inside) / np.maximum(before + h, 1)
        expected_Q[query] = np.sum(probability * ratio)
    return expected_Q


def _sums(before: Integers, taken: Integers) -> tuple[Floats, Floats]:
    """S = sum_{i=1..m} 1 / (n0 + i), and sum_{i=1..m} (i - 1) / (n0 + i) = m - (n0 + 1) S, for arrays of n0 and m.

    The second cancels nearly all of its digits where n0 is large, so S is needed to full relative precision, which a
    table of harmonic numbers does not give. Beyond 64 it comes from their expansion about y = j + 1/2 instead:
    H_j = ln y + 0.5772... + 1/(24 y^2) - 7/(960 y^4) + 31/(8064 y^6) - ...
    """
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, 65)))
    after = before + taken
    near = harmonic[np.minimum(after, 64)] - harmonic[np.minimum(before, 64)]
    start, stop = np.maximum(before, 64) + 0.5, np.maximum(after, 64) + 0.5
    correction = [1 / (24 * y**2) - 7 / (960 * y**4) + 31 / (8064 * y**6) for y in (start, stop)]
    first = near + np.log1p((stop - start) / start) + (correction[1] - correction[0])
    return first, taken - (before + 1) * first


def _hypergeometric(items: int, relevant: int, drawn: int) -> tuple[Integers, Floats]:
    """The possible numbers of relevant among ``drawn`` of ``items``, ascending, and the probability of each."""
    low, high = max(0, drawn - (items - relevant)), min(drawn, relevant)
    h = np.arange(low, high + 1)
    # P(h) / P(h - 1), multiplied up and down from the mode: nothing overflows, and no factorial loses digits.
    growth = ((relevant - h[1:] + 1) * (drawn - h[1:] + 1)) / (h[1:] * (items - relevant - drawn + h[1:]))
    mode = int(np.count_nonzero(growth > 1))
    weight = np.concatenate([np.cumprod(1 / growth[:mode][::-1])[::-1], [1.0], np.cumprod(growth[mode:])])
    return h, weight / weight.sum()
