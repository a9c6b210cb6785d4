"""The report of an export: how far outputs, codes, mAP and speed are from those of the network that was exported.

Shapes: N images, K bits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_DROP = 0.01  # of mAP, absolute: above it int8 is called worse
LEAST_ROUNDS = 5


def agreement(before_NK: NDArray[np.float32], after_NK: NDArray[np.float32]) -> dict[str, float]:
    """How two hashers' outputs for the same images agree.

    Returns:
        ``largest_difference`` as a share of the largest output before, and the shares of bits and of whole codes that
        are equal.
    """
    same_NK = (before_NK > 0) == (after_NK > 0)
    return {
        "largest_difference": float(np.abs(before_NK - after_NK).max() / np.abs(before_NK).max()),
        "bits_equal": float(same_NK.mean()),
        "codes_equal": float(same_NK.all(axis=1).mean()),
    }


def speeds(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median time of each function, run in turn, so that a slow moment of the machine falls on all alike.

    Args:
        runs: functions by name.
        seconds: how long to measure for each function, at least.

    Returns:
        Milliseconds by name.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
        run()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds * len(runs) or len(next(iter(times.values()))) < LEAST_ROUNDS:
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: 1000 * statistics.median(taken) for name, taken in times.items()}


def verdict(report: dict[str, Any]) -> str:
    """One sentence on whether int8 is worth it, by this report."""
    ratios = {batch: row["fp32_over_int8"] for batch, row in report["speed"].items()}
    slower = [f"batch {batch} ({ratio:.2f} times as fast)" for batch, ratio in ratios.items() if ratio <= 1]
    drop = report["map_at_all"]["fp32"] - report["map_at_all"]["int8"] if report["map_at_all"] else None
    faults = []
    if drop is not None and drop > MOST_DROP:
        faults.append(f"worse: mAP falls by {drop:.4f}")
    if slower:
        faults.append(f"not faster at {' and '.join(slower)}")
    if faults:
        return f"On this machine int8 is {', and '.join(faults)}."
    quality = (
        f"its mAP differs by {-drop:+.4f}" if drop is not None else "what it does to mAP was not measured (no labels)"
    )
    fast = " and ".join(f"{ratio:.2f} times as fast at batch {batch}" for batch, ratio in ratios.items())
    return f"On this machine int8 is {fast}, and {quality}."


def markdown(report: dict[str, Any]) -> str:
    """The report as the README of an exported directory."""
    lines = ["# An exported distilhash hasher", "", report["verdict"], ""]
    lines += ["| | of | bits equal | codes equal | largest difference of an output |", "|---|---|---|---|---|"]
    for name, text in (("fp32", "model.onnx against PyTorch"), ("int8", "model.int8.onnx against model.onnx")):
        row = report["agreement"][name]
        lines.append(
            f"| {text} | {report['compared_images']:,} images | {row['bits_equal']:.4%} | {row['codes_equal']:.2%} "
            f"| {row['largest_difference']:.1e} of the largest |"
        )
    lines += [
        "",
        "| batch | PyTorch, ms | fp32, ms | int8, ms | PyTorch / fp32 | fp32 / int8 |",
        "|---|---|---|---|---|---|",
    ]
    for batch, row in report["speed"].items():
        lines.append(
            f"| {batch} | {row['torch_ms']:.2f} | {row['fp32_ms']:.2f} | {row['int8_ms']:.2f} "
            f"| {row['torch_over_fp32']:.2f} | {row['fp32_over_int8']:.2f} |"
        )
    lines += ["", f"Medians of the network alone, in turn, on one thread, {report['machine']}.", ""]
    if report["map_at_all"]:
        row = report["map_at_all"]
        lines += [
            f"mAP@all of {row['queries']:,} queries in {row['database']:,} images: PyTorch {row['torch']:.4f}, "
            f"fp32 {row['fp32']:.4f}, int8 {row['int8']:.4f}.", "",
        ]  # fmt: skip
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in report["bytes"].items())
    lines += [f"{sizes}.", "", f"Calibrated on {report['calibration_images']:,} images, none of them a query.", ""]
    lines += ["Load it with `distilhash.deploy.runtime.ExportedHasher.open(directory)`, which needs no PyTorch.", ""]
    return "\n".join(lines)
