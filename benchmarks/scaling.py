"""How the cost of a work grows with its size: times at several sizes, and how straight the line through them is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from sidebyside import keep, machine

REPEATS = 3


def cost(
    work: str,
    unit: str,
    sizes: Sequence[int],
    prepare: Callable[[int], Callable[[], object]],
    settings: dict[str, object],
) -> dict[str, object]:
    """Time ``prepare(size)()`` at every size, keep and print the row.

    Its ratio is the rate at the largest size over that at the smallest: 1 where cost is proportional to size.
    """
    runs = [prepare(size) for size in sizes]
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in sizes]
    for _ in range(REPEATS):  # all sizes in turn, so that a machine that drifts bends no line
        for run, own in zip(runs, times, strict=True):
            began = time.perf_counter()
            run()
            own.append(time.perf_counter() - began)
    seconds = [statistics.median(own) for own in times]
    slope, intercept, r_squared = line(sizes, seconds)
    row: dict[str, object] = {
        "work": work,
        "peer": "the same at the smallest size",
        "peer_rate": sizes[0] / seconds[0],
        "ours_rate": sizes[-1] / seconds[-1],
        "unit": unit,
        "ratio": sizes[-1] / seconds[-1] / (sizes[0] / seconds[0]),
        "pairs": REPEATS,
        "sizes": list(sizes),
        "seconds": seconds,
        "seconds_for_each": slope,
        "seconds_for_none": intercept,
        "r_squared": r_squared,
        "settings": {"machine": machine(), **settings},
    }
    keep(row)
    print(f"{work:<14} {sizes[0]:>10,} to {sizes[-1]:,} {unit}: R squared of a line {r_squared:.4f}")
    return row


def line(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Slope, intercept and R squared of the least-squares line."""
    x, y = np.asarray(sizes, float), np.asarray(seconds)
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept), float(1 - np.var(y - slope * x - intercept) / np.var(y))
