"""The command ``export``: a hasher as ONNX, in float32 and int8, and a report of what that changed.

``distilhash.deploy.runtime`` runs what it writes.

Shapes: N images, S pixels, K bits.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distilhash.checkpoint import load_hasher
from distilhash.codes import pack
from distilhash.config import ExportConfig, as_dict
from distilhash.data.loading import open_readable, split_beside, split_of
from distilhash.data.order import CALIBRATION, shuffled
from distilhash.data.sources import ImageSource
from distilhash.data.splits import Split
from distilhash.data.transforms import Preprocess
from distilhash.deploy.quantize import to_int8, to_onnx
from distilhash.deploy.report import agreement, markdown, speeds, verdict
from distilhash.deploy.runtime import FLOAT, FORMAT, INT8, ExportedHasher, is_exported, package, session_of
from distilhash.errors import DistilhashError
from distilhash.evaluation.metrics import mean_average_precision
from distilhash.files import restore_directory, write_directory_atomically, write_json
from distilhash.inference import outputs
from distilhash.models.backbone import fingerprint_of
from distilhash.models.fold import folded
from distilhash.models.hasher import Hasher
from distilhash.progress import log

MOST_DIFFERENCE = 1e-3  # of the largest output: an ONNX file that is further from PyTorch is not written
CPU = torch.device("cpu")  # as ONNX Runtime, with which it is compared
BATCHES = (1, 32)  # that are timed, images


def export_hasher(
    hasher: str | Path,
    output: str | Path,
    images: str | Path,
    *,
    config: ExportConfig | None = None,
    protocol: str = "cifar10",
    split_seed: int = 0,
    split: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a hasher as ONNX, calibrated and compared on images.

    The directory is written whole or not at all. Where the images have a split, calibration sees no query of it, and
    mAP is measured on it.

    Args:
        hasher: a run directory or a model directory.
        output: the directory to write.
        images: "cifar10" or a folder.
        config: numbers of images, seconds and seed; None: the defaults.
        protocol: the split of CIFAR-10.
        split_seed: random seed of the split where one is drawn.
        split: a split's file; None: the one beside the hasher, else a drawn one where the images have classes.
        overwrite: replace an exported hasher that stands at ``output``.

    Returns:
        The report, which is also ``report.json`` and ``README.md`` in the directory.

    Raises:
        DistilhashError: ``output`` exists, a package is missing, an input cannot be read, the disk refuses, or ONNX
            Runtime does not compute what PyTorch does.
    """
    config, place = config or ExportConfig(), Path(output)
    restore_directory(place)
    if place.exists() and not (overwrite and is_exported(place)):
        fix = "choose another place" if overwrite else "choose another place, or --overwrite an exported hasher"
        raise DistilhashError("the output exists", place, fix)
    for name in ("onnx", "onnxruntime", "onnxscript"):  # missing ones are told before anything is computed
        package(name)
    network, description = load_hasher(hasher)
    source = open_readable(images, labelled=None)
    chosen = _split(source, images, Path(hasher), protocol, split_seed, split)
    allowed = np.arange(len(source)) if chosen is None else chosen.unlabelled
    drawn = shuffled(allowed, config.seed, CALIBRATION)
    calibration = drawn[: config.calibration_images]
    compared = drawn[len(calibration) :][: config.compared_images]
    if len(compared) == 0:  # so few that calibration takes them all
        compared = calibration
    pixels = Preprocess(network.input)
    with write_directory_atomically(place) as folder:
        log.info("writing float32")
        content = to_onnx(network)
        log.info("writing int8, calibrated on %s images", f"{len(calibration):,}")
        work = folder / "work"
        work.mkdir()
        small = to_int8(content, pixels.planes(pixels.read(source, calibration)), work)
        shutil.rmtree(work)
        fingerprint = fingerprint_of(network)
        files = {FLOAT: content, INT8: small}
        for name, data in files.items():
            (folder / name).write_bytes(data)
        write_json(folder / "config.json", {
            "format": FORMAT,
            "input": as_dict(network.input),
            "bits": network.num_bits,
            "hasher": fingerprint,
            "source": {"architecture": network.backbone.architecture, "settings": description.get("settings")},
            "export": as_dict(config),
            "images": source.fingerprint,
            "files": {n: {"sha256": hashlib.sha256(d).hexdigest(), "bytes": len(d)} for n, d in files.items()},
        })  # fmt: skip
        report = _report(network, folder, source, compared, chosen, config)
        report["calibration_images"] = len(calibration)
        report["bytes"] = {name: len(data) for name, data in files.items()}
        report["verdict"] = verdict(report)
        if report["agreement"]["fp32"]["largest_difference"] > MOST_DIFFERENCE:
            raise DistilhashError(
                "ONNX Runtime does not compute what PyTorch does",
                f"a difference of {report['agreement']['fp32']['largest_difference']:.1e} of the largest output",
                "this network cannot be exported",
            )
        write_json(folder / "report.json", report)
        (folder / "README.md").write_text(markdown(report), encoding="utf-8")
    return report


def _split(
    source: ImageSource, images: str | Path, hasher: Path, protocol: str, seed: int, file: Path | None
) -> Split | None:
    """The split of the images: the hasher's own only where it is of as many images."""
    beside = split_beside(hasher)
    if file is None and beside is not None and Split.load(beside).num_images == len(source):
        file = beside
    return split_of(source, images, protocol, seed, file, needed=False)


def _report(
    network: Hasher,
    folder: Path,
    source: ImageSource,
    compared: NDArray[np.int64],
    split: Split | None,
    config: ExportConfig,
) -> dict[str, Any]:
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
        "agreement": {"fp32": agreement(torch_NK, fp32_NK), "int8": agreement(fp32_NK, int8_NK)},
        "map_at_all": None,
        "threads": 1,
        "machine": f"{platform.system()} {platform.machine()}",
    }
    if split is not None and source.labels is not None:
        database = shuffled(split.database, config.seed, CALIBRATION)[: config.database_images]
        labels = np.asarray(source.labels)
        log.info("measuring mAP, %s queries in %s images", f"{len(split.query):,}", f"{len(database):,}")
        found["map_at_all"] = {"queries": len(split.query), "database": len(database)}
        for name in ("torch", "fp32", "int8"):
            query, images = (pack(outputs_of(name, part)) for part in (split.query, database))
            found["map_at_all"][name] = mean_average_precision(
                query, images, labels[split.query], labels[database], num_bits=network.num_bits
            )
    log.info("measuring speed")
    found["speed"] = {str(batch): _speed(network, folder, batch, config.seconds) for batch in BATCHES}
    return found


def _speed(network: Hasher, folder: Path, batch: int, seconds: float) -> dict[str, float]:
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
        ms = speeds({"torch": with_torch, "fp32": with_runtime(FLOAT), "int8": with_runtime(INT8)}, seconds)
    finally:
        torch.set_num_threads(threads)
    return {f"{name}_ms": value for name, value in ms.items()} | {
        "torch_over_fp32": ms["torch"] / ms["fp32"],
        "fp32_over_int8": ms["fp32"] / ms["int8"],
    }
