"""A multi-label set to try the whole path on, where NUS-WIDE is not at hand: mosaics of four images, as list files.

NUS-WIDE's photographs must be fetched from their authors; CIFAR-10 fetches itself. Four of its images side by side
(2 x 2, so 64 x 64 pixels) are one image with the classes of all four, and retrieval means what it means in NUS-WIDE:
relevant is whatever shares a class. The lists are in the published format, and as in NUS-WIDE train is a part of the
database. Mosaics are easier than photographs: a number measured on them stands beside no published one.

What is drawn is a function of counters (data.order): the same seed gives the same mosaics, whatever was interrupted.

Shapes: M mosaics, N images of the source, C classes, H, W sides of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distilhash.data.lists import LISTS
from distilhash.data.order import SPLITS, random64, shuffled
from distilhash.data.prefetch import cores, prefetch
from distilhash.data.sources import ImageSource
from distilhash.errors import DistilhashError
from distilhash.files import read_json, write_atomically, write_json

MARKER = "mosaics.json"  # the settings, and whether every mosaic is there
TILES = 4
BLOCK = 128  # mosaics made at once
QUERY_SHARE = 1 / 6  # of each class: the images that only queries are made of
_PURPOSE = 101  # beside SPLITS in the key: what is drawn here is drawn nowhere else


def write_mosaics(
    folder: str | Path,
    images: ImageSource,
    *,
    train: int,
    query: int,
    database: int,
    seed: int = 0,
    repeat: float = 0.5,
    say: Callable[[str], object] = lambda text: None,
) -> Path:
    """Write mosaics of single-label images of one size (CIFAR-10) with their list files; return the folder.

    ``train``, ``query``, ``database``: mosaics in train.txt, test.txt and database.txt; the first are also among the
    last. No image is under a query mosaic and under another one. ``repeat``: the probability with which each of the
    other three images is of the first one's class. With 0 a mosaic of ten classes has 3.4 of them on average, four
    pairs in five share one, and even a random ranking looks good; ``evaluation.metrics.relevant_share`` of the labels
    tells. What was interrupted is continued, and what is finished is left as it is. Errors: DistilhashError where the counts
    do not fit, the images have no single labels or differ in size, or the folder holds something else.
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
    threads = cores()
    done = 0
    for written in prefetch(
        lambda block: _write_block(folder, names, images, tiles_M4, block), blocks, ahead=2 * threads, threads=threads
    ):
        done += written
        say(f"mosaics {done:,}/{len(names):,}")
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
) -> int:
    """Write the mosaics of a block that are not there yet; return how many the block has."""
    absent = np.array([m for m in block if not _there(folder / names[m])], np.int64)
    if len(absent):
        tiles = images.read(tiles_M4[absent].ravel())
        if len({tile.shape for tile in tiles}) > 1:
            raise DistilhashError("mosaics are made of images of one size", "images of several")
        H, W = tiles[0].shape[:2]
        grid = np.asarray(tiles).reshape(len(absent), 2, 2, H, W, 3)
        mosaics = grid.transpose(0, 1, 3, 2, 4, 5).reshape(len(absent), 2 * H, 2 * W, 3)
        for m, mosaic in zip(absent, mosaics, strict=True):
            _write_png(folder / names[m], mosaic)
    return len(block)


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
