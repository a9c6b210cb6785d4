"""The command ``export``: a hasher as ONNX, in float32 and int8, and a report of what that changed.

``distilhash.deploy.runtime`` runs what it writes. One file, as the report is half of what it is for: it measures how
far outputs, codes, mAP and speed are from those of the network that was exported, and says so in the README.

Shapes: N images, S pixels, K bits.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distilhash.checkpoint import load_hasher, model_card
from distilhash.codes import pack
from distilhash.config import ExportConfig, ScanConfig, as_dict
from distilhash.data.loading import open_readable, split_beside, split_of
from distilhash.data.order import CALIBRATION, shuffled
from distilhash.data.sources import ImageSource, count_seen
from distilhash.data.splits import Split
from distilhash.data.transforms import Preprocess
from distilhash.deploy.quantize import to_int8, to_onnx
from distilhash.deploy.runtime import FLOAT, FORMAT, INT8, SEEN, ExportedHasher, is_exported, session_of
from distilhash.errors import DistilhashError
from distilhash.evaluation.metrics import mean_average_precision
from distilhash.files import restore_directory, write_directory_atomically, write_json
from distilhash.inference import outputs
from distilhash.models.backbone import fingerprint_of
from distilhash.models.fold import folded
from distilhash.models.hasher import HasherNetwork
from distilhash.progress import log

MOST_DIFFERENCE = 1e-3  # of the largest output: an ONNX file that is further from PyTorch is not written
MOST_DROP = 0.01  # of mAP, absolute: above it int8 is called worse
LEAST_ROUNDS = 5  # that are timed
CPU = torch.device("cpu")  # as ONNX Runtime, with which it is compared
BATCHES = (1, 32)  # that are timed, images


def export_hasher(
    hasher: str | Path, output: str | Path, images: str | Path | Any, *, config: ExportConfig | None = None,
    protocol: str = "cifar10", split_seed: int = 0, split: str | Path | None = None, scan: ScanConfig | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write a hasher as ONNX, calibrated and compared on images.

    The directory is written whole or not at all. Where the images have a split, calibration sees no query of it, and
    mAP is measured on it.

    Args:
        hasher: a run directory or a model directory.
        images: "cifar10" or a folder.
        scan: which files of a folder are read.
        protocol, split_seed: of the split, where one is drawn.
        split: a split's file; None: the one beside the hasher, else a drawn one where the images have classes.
        overwrite: replace an exported hasher that stands at ``output``.

    Returns:
        The report, which is also ``report.json`` and ``README.md`` in the directory.

    Raises:
        DistilhashError: ``output`` exists, or ONNX Runtime does not compute what PyTorch does.
    """
    config, place = config or ExportConfig(), Path(output)
    restore_directory(place)
    if place.exists() and not (overwrite and is_exported(place)):
        fix = "choose another place" if overwrite else "choose another place, or --overwrite an exported hasher"
        raise DistilhashError("the output exists", place, fix)
    network, description = load_hasher(hasher)
    source = open_readable(images, labelled=None, scan=scan)
    chosen, beside = None, split_beside(Path(hasher))
    if split is None and beside is not None:
        try:
            chosen = split_of(source, images, protocol, split_seed, beside, needed=False)
        except DistilhashError as error:
            if network.seen is not None and count_seen(source, np.arange(len(source)), network.seen):
                raise  # another split of these images would ask for what the network was trained on
            log.warning("another split is drawn, as these are not the images of the hasher's own: %s", error.got)
    if chosen is None:
        chosen = split_of(source, images, protocol, split_seed, split, needed=False)
    seen = 0 if chosen is None or network.seen is None else count_seen(source, chosen.query, network.seen)
    if chosen is not None and seen:
        log.warning("%s of %s queries were seen in training: mAP is optimistic", seen, len(chosen.query))
    allowed = np.arange(len(source)) if chosen is None else chosen.unlabelled
    drawn = shuffled(allowed, config.seed, CALIBRATION)
    calibration = drawn[: config.calibration_images]
    compared = drawn[len(calibration) :][: config.compared_images]
    if not len(compared):  # so few that calibration takes them all
        compared = calibration
    pixels = Preprocess(network.input)
    with write_directory_atomically(place) as folder:
        log.info("writing float32")
        files = {FLOAT: to_onnx(network)}
        log.info("writing int8, calibrated on %s images", f"{len(calibration):,}")
        work = folder / "work"
        work.mkdir()
        files[INT8] = to_int8(files[FLOAT], pixels.planes(pixels.read(source, calibration)), work)
        shutil.rmtree(work)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        if network.seen is not None:
            np.save(folder / SEEN, network.seen, allow_pickle=False)
        if chosen is not None:
            chosen.save(folder / "split.json")
        write_json(folder / "config.json", {
            "format": FORMAT,
            "input": as_dict(network.input),
            "bits": network.num_bits,
            "hasher": fingerprint_of(network),
            "source": {"architecture": network.backbone.architecture, "settings": description.get("settings")},
            "export": as_dict(config),
            "images": source.fingerprint,
            "files": {n: {"sha256": hashlib.sha256(d).hexdigest(), "bytes": len(d)} for n, d in files.items()},
        })  # fmt: skip
        report = _report(network, folder, source, compared, chosen, config)
        report["calibration_images"] = len(calibration)
        report["queries_seen_in_training"] = seen
        report["bytes"] = {name: len(data) for name, data in files.items()}
        report["verdict"] = verdict(report)
        difference = report["agreement"]["fp32"]["largest_difference"]
        if not difference <= MOST_DIFFERENCE:  # also refuses NaN
            raise DistilhashError(
                "ONNX Runtime does not compute what PyTorch does", f"a difference of {difference:.1e} of the largest "
                "output", "this network cannot be exported",
            )  # fmt: skip
        write_json(folder / "report.json", report)
        card = model_card(description, exported=True) + _markdown(report)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return report


def _report(
    network: HasherNetwork, folder: Path, source: ImageSource, compared: NDArray[np.int64], split: Split | None,
    config: ExportConfig,
) -> dict[str, Any]:  # fmt: skip
    """Agreement, mAP and speed of PyTorch, fp32 and int8."""
    exported = {name: ExportedHasher.open(folder, int8=name == "int8") for name in ("fp32", "int8")}

    def outputs_of(name: str, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        if name == "torch":
            return np.concatenate(list(outputs(source, indices, network, precision="float32", device=CPU)))
        return np.concatenate(list(exported[name].outputs(source, indices)))

    log.info("comparing %s images", f"{len(compared):,}")
    torch_NK, fp32_NK, int8_NK = (outputs_of(name, compared) for name in ("torch", "fp32", "int8"))
    found: dict[str, Any] = {
        "compared_images": len(compared),
        "agreement": {"fp32": _agreement(torch_NK, fp32_NK), "int8": _agreement(fp32_NK, int8_NK)},
        "map_at_all": None,
        "threads": 1,
        "machine": f"{platform.system()} {platform.machine()}",
    }
    if split is not None and source.labels is not None and len(source.class_names) > 1:  # of one class it is always 1
        database = shuffled(split.database, config.seed, CALIBRATION)[: config.database_images]
        labels = np.asarray(source.labels)
        log.info("measuring mAP, %s queries in %s images", f"{len(split.query):,}", f"{len(database):,}")
        found["map_at_all"] = {"queries": len(split.query), "database": len(database)}
        for name in ("torch", "fp32", "int8"):
            query, images = (pack(outputs_of(name, part)) for part in (split.query, database))
            kinds = labels[split.query], labels[database]
            found["map_at_all"][name] = mean_average_precision(query, images, *kinds, num_bits=network.num_bits)
    log.info("measuring speed")
    found["speed"] = {str(batch): _speed(network, folder, batch, config.seconds) for batch in BATCHES}
    return found


def _speed(network: HasherNetwork, folder: Path, batch: int, seconds: float) -> dict[str, float]:
    """Milliseconds of a batch through the network alone, on one thread, which is how each batch is encoded."""
    side = network.input.size
    images = np.random.default_rng(0).normal(size=(batch, 3, side, side)).astype(np.float32)
    backbone = folded(network.backbone)
    tensor = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)

    def with_torch() -> None:
        with torch.inference_mode():
            network.head(torch.relu(backbone(tensor)))

    def with_runtime(file: str) -> Callable[[], object]:
        session = session_of((folder / file).read_bytes())
        return lambda: session.run(None, {"images": images})

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ms = _speeds({"torch": with_torch, "fp32": with_runtime(FLOAT), "int8": with_runtime(INT8)}, seconds)
    finally:
        torch.set_num_threads(threads)
    return {f"{name}_ms": value for name, value in ms.items()} | {
        "torch_over_fp32": ms["torch"] / ms["fp32"],
        "fp32_over_int8": ms["fp32"] / ms["int8"],
    }


def _agreement(before_NK: NDArray[np.float32], after_NK: NDArray[np.float32]) -> dict[str, float]:
    """How the outputs of two hashers agree; the largest difference is a share of the largest output before."""
    same_NK = (before_NK > 0) == (after_NK > 0)
    return {
        "largest_difference": float(np.abs(before_NK - after_NK).max() / np.abs(before_NK).max()),
        "bits_equal": float(same_NK.mean()),
        "codes_equal": float(same_NK.all(axis=1).mean()),
    }


def _speeds(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each function, in turn, so that a slow moment of the machine falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in [*runs.values()] * 2:
        run()
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < seconds * len(runs) or rounds < LEAST_ROUNDS:
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
        rounds += 1
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
    quality = "what it does to mAP was not measured (no labels)" if drop is None else f"its mAP differs by {-drop:+.4f}"
    fast = " and ".join(f"{ratio:.2f} times as fast at batch {batch}" for batch, ratio in ratios.items())
    return f"On this machine int8 is {fast}, and {quality}."


def _markdown(report: dict[str, Any]) -> str:
    """The report as the README of an exported directory."""
    lines = ["## What export changed", "", report["verdict"], ""]
    lines += ["| | of | bits equal | codes equal | largest difference of an output |", "|---|---|---|---|---|"]
    for name, text in (("fp32", "model.onnx against PyTorch"), ("int8", "model.int8.onnx against model.onnx")):
        row = report["agreement"][name]
        lines.append(
            f"| {text} | {report['compared_images']:,} images | {row['bits_equal']:.4%} | {row['codes_equal']:.2%} "
            f"| {row['largest_difference']:.1e} of the largest |"
        )
    lines += ["", "| batch | PyTorch, ms | fp32, ms | int8, ms | PyTorch / fp32 | fp32 / int8 |"]
    lines += ["|---|---|---|---|---|---|"]
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
        if report["queries_seen_in_training"]:
            seen = f"{report['queries_seen_in_training']:,} of these queries were seen in training"
            lines += [f"{seen}: the numbers are optimistic.", ""]
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in report["bytes"].items())
    lines += [f"{sizes}.", "", f"Calibrated on {report['calibration_images']:,} images, none of them a query.", ""]
    lines += ["It runs on ONNX Runtime, and needs no PyTorch.", ""]
    return "\n".join(lines)
