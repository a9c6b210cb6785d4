"""Multi-label hashing on a set that learns: the nuswide table on mosaics of CIFAR-10, in the published list format.

    python benchmarks/mosaics.py --runs runs --output results/mosaics.json

NUS-WIDE's photographs must be fetched from their authors; CIFAR-10 fetches itself. Four of its images side by side
(2 x 2, so 64 x 64 pixels) are one image with the classes of all four, and retrieval means what it means in NUS-WIDE:
relevant is whatever shares a class. Mosaics are easier than photographs: a number measured on them stands beside no
published one. What is drawn is a function of counters (data.order).

They go through `distilhash reproduce nuswide --budget desktop` for the distilled student at 48 bits, which CSQ's
Hadamard centres cannot have, with both frameworks. Beside each mAP@5000 stand two floors, measured on the same queries
and database: the share of relevant images, which a random ranking scores, and the same hasher before any training.

Shapes: M mosaics, H, W sides of an image in pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distilhash.config import HashConfig, ReproduceConfig
from distilhash.data.cifar10 import load_cifar10
from distilhash.data.folders import LISTS
from distilhash.data.loading import open_readable
from distilhash.data.order import SPLITS, random64, shuffled
from distilhash.data.sources import ImageSource
from distilhash.data.splits import Split
from distilhash.errors import DistilhashError
from distilhash.evaluation.metrics import evaluate_tables
from distilhash.experiments.presets import TABLES
from distilhash.experiments.runner import reproduce
from distilhash.files import read_json, write_atomically, write_json
from distilhash.inference import encode
from distilhash.models import new_hasher, new_student
from distilhash.progress import progress

TRAIN, QUERY, DATABASE, BITS = 3_000, 500, 9_000, 48
MARKER = "mosaics.json"  # the settings, and whether every mosaic is there
TILES = 4
BLOCK = 128  # mosaics made at once
QUERY_SHARE = 1 / 6  # of each class: the images that only queries are made of
_PURPOSE = 101  # beside SPLITS in the key: so this draw is independent of the splits'


def main() -> int:
    """Run it, keep the cells, and return the exit code: 1 where a floor is not passed clearly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where mosaics and run go")
    parser.add_argument("--output", type=Path, default=Path("results/mosaics.json"))
    options = parser.parse_args()
    folder, run = options.runs / "mosaics", options.runs / "reproduce-mosaics"
    write_mosaics(folder, load_cifar10(), train=TRAIN, query=QUERY, database=DATABASE)
    config = ReproduceConfig(images=str(folder), arms="distilled", bits=str(BITS), seeds="0")
    cells = reproduce("nuswide", run, config=config, resume=run.exists())
    untrained = floor(folder, run)
    print(f"random ranking {cells[0]['relevant_share']:.3f}, untrained hasher {untrained:.3f}")
    for cell in cells:
        cell["untrained_map_at_5000"] = untrained
        print(f"{cell['framework']} {cell['bits']} bits: mAP@5000 {cell['map_at_5000']:.3f}")
    kept = [{key: value for key, value in cell.items() if key != "curves"} for cell in cells]
    options.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0 if all(cell["map_at_5000"] > max(untrained, cell["relevant_share"]) + 0.1 for cell in cells) else 1


def floor(folder: Path, run: Path) -> float:
    """mAP@5000 of the hasher with its first weights."""
    images, split = open_readable(str(folder), labelled=True), Split.load(run / "0" / "split.json")
    student = new_student(TABLES["nuswide"]["desktop"]().student, 0)
    hasher = new_hasher(student, HashConfig(bits=BITS))
    tables = [encode(images, indices, hasher) for indices in (split.query, split.database)]
    found: float = evaluate_tables(*tables, at=5000)["map_at_5000"]
    return found


def write_mosaics(
    folder: str | Path,
    images: ImageSource,
    *,
    train: int,
    query: int,
    database: int,
    seed: int = 0,
    repeat: float = 0.5,
) -> Path:
    """Write mosaics of single-label images of one size (CIFAR-10) with their list files.

    No image is under a query mosaic and under another one. What was interrupted is continued, and what is finished is
    left as it is.

    Args:
        train, query, database: mosaics in train.txt, test.txt and database.txt; the first are also among the last.
        repeat: the probability with which each of the other three images is of the first one's class. With 0 a mosaic
            of ten classes has 3.4 of them on average, and four pairs in five share one.

    Returns:
        The folder.

    Raises:
        DistilhashError: the counts do not fit, the images have no single labels or differ in size, or the folder
            holds something else.
    """
    folder = Path(folder).expanduser()
    settings = {
        "images": images.fingerprint, "train": train, "query": query, "database": database, "seed": seed,
        "repeat": repeat,
    }  # fmt: skip
    if min(query, train) < 1 or train > database:
        raise DistilhashError(
            "mosaics need a query, a training image, and a database with the training images in it",
            f"query {query}, train {train}, database {database}",
        )
    if not 0 <= repeat <= 1:
        raise DistilhashError("repeat is a probability", str(repeat), "choose a number from 0 to 1")
    tiles_M4 = _drawn(images, query, database, seed, repeat)
    if _finished(folder, settings):
        return folder
    write_json(folder / MARKER, {**settings, "finished": False})
    names = [f"images/{'query' if m < query else 'database'}_{m:06d}.png" for m in range(query + database)]
    (folder / "images").mkdir(exist_ok=True)
    blocks = [np.arange(start, min(start + BLOCK, len(names))) for start in range(0, len(names), BLOCK)]
    with progress("write mosaics", len(names), "mosaics") as counter:
        for block in blocks:
            _write_block(folder, names, images, tiles_M4, block)
            counter.add(len(block))
    labels = np.asarray(images.labels)
    labels_MC = np.zeros((len(names), int(labels.max()) + 1), np.uint8)
    labels_MC[np.arange(len(names))[:, None], labels[tiles_M4]] = 1
    parts = dict(zip(LISTS, (slice(query, query + train), slice(query, None), slice(query)), strict=True))
    for name, part in parts.items():
        rows = zip(names[part], labels_MC[part].tolist(), strict=True)
        write_atomically(folder / name, "".join(f"{path} {' '.join(map(str, row))}\n" for path, row in rows))
    write_json(folder / MARKER, {**settings, "finished": True})
    return folder


def _drawn(images: ImageSource, query: int, database: int, seed: int, repeat: float) -> NDArray[np.int64]:
    """(M, 4) indices of the images under each mosaic, the query mosaics first."""
    labels = images.labels
    if labels is None or labels.ndim != 1:
        raise DistilhashError(
            "mosaics are made of images with one label each", "images without" if labels is None else "more"
        )
    classes = int(labels.max()) + 1
    own = [shuffled(np.flatnonzero(labels == c), seed, SPLITS, _PURPOSE, c) for c in range(classes)]
    few = [c for c, indices in enumerate(own) if len(indices) < 2]
    if few:
        raise DistilhashError(
            "every class needs two images: one for queries, one for the database", f"too few in class {few[0]}"
        )
    cut = [max(1, round(QUERY_SHARE * len(indices))) for indices in own]
    mosaics = np.arange(query + database)

    def words(what: int, place: int) -> NDArray[np.uint64]:
        return random64(mosaics, seed, SPLITS, _PURPOSE, what, place)

    classes_M4 = np.stack([words(0, place) % np.uint64(classes) for place in range(TILES)], axis=1).astype(np.int64)
    for place in range(1, TILES):
        same = words(1, place).astype(np.float64) / 2.0**64 < repeat
        classes_M4[same, place] = classes_M4[same, 0]
    tiles_M4 = np.empty((len(mosaics), TILES), np.int64)
    for place in range(TILES):
        word_M = words(2, place)
        for c, indices in enumerate(own):
            for pool, is_query in ((indices[: cut[c]], True), (indices[cut[c] :], False)):
                chosen = (classes_M4[:, place] == c) & ((mosaics < query) == is_query)
                tiles_M4[chosen, place] = pool[(word_M[chosen] % np.uint64(len(pool))).astype(np.int64)]
    return tiles_M4


def _finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether these very mosaics are all there; DistilhashError where the folder holds something else."""
    if not (folder / MARKER).exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DistilhashError("mosaics need a folder of their own", f"{folder}, which holds something else")
        return False
    kept = read_json(folder / MARKER, "description of mosaics")
    finished = isinstance(kept, dict) and kept.pop("finished", None)
    if kept != settings:
        raise DistilhashError(
            "this folder holds other mosaics", str(folder), "choose another folder, or delete this one"
        )
    return finished is True


def _write_block(
    folder: Path, names: list[str], images: ImageSource, tiles_M4: NDArray[np.int64], block: NDArray[np.int64]
) -> None:
    """Write the mosaics of a block that are not there yet."""
    absent = np.array([m for m in block if not _there(folder / names[m])], np.int64)
    if len(absent):
        tiles = [np.asarray(tile) for tile in images.read(tiles_M4[absent].ravel())]
        if len({tile.shape for tile in tiles}) > 1:
            raise DistilhashError("mosaics are made of images of one size", "images of several")
        H, W = tiles[0].shape[:2]
        grid = np.asarray(tiles).reshape(len(absent), 2, 2, H, W, 3)
        mosaics = grid.transpose(0, 1, 3, 2, 4, 5).reshape(len(absent), 2 * H, 2 * W, 3)
        for m, mosaic in zip(absent, mosaics, strict=True):
            _write_png(folder / names[m], mosaic)


def _there(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0  # a file that a power cut emptied is made again


def _write_png(file: Path, pixels_HW3: NDArray[np.uint8]) -> None:
    """Renamed when whole, but not synchronised one by one: that would take longer than making them."""
    partial = file.with_name(f".{file.name}.tmp")
    try:
        Image.fromarray(pixels_HW3).save(partial, format="PNG", compress_level=1)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DistilhashError(
            f"cannot write {file}", error.strerror or error, "free some room; the same call goes on from here"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
