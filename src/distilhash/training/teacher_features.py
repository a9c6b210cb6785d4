"""The frozen teacher's features of every image and view: computed once, kept in a memory-mapped file.

A frozen teacher gives the same feature for the same pixels in every epoch, so running it beside the student (as the
published loop does) repeats the most expensive part of the work. View 0 is the image itself; views 1, 2, ... are
flipped and shifted, by a hash of (seed, view, image), so that the student can be shown exactly the view of a feature.

    features.npy     (V, N, D) float32, memory-mapped; partial until progress says so
    cache.json       fingerprint and shape; the arithmetic that the teacher ran in; rows done

Legend: V views, N images, D features.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilhash.config import InputConfig, fingerprint
from distilhash.data.prefetch import through
from distilhash.data.sources import ImageSource
from distilhash.data.transforms import Preprocess, make_views
from distilhash.device import batch_factor, current, fastest_precision, on, sent
from distilhash.errors import DistilhashError, refused
from distilhash.files import fingerprint_of_indices, read_json, write_json
from distilhash.models.fold import folded
from distilhash.models.teacher import Teacher
from distilhash.progress import progress

BATCH, BATCH_PIXELS = 64, 400_000  # most of a forward pass: larger ones leave the CPU's caches and are slower
FEATURES = "features.npy"
CHECKED = 4096  # rows of a cache that are looked at in one go
FLUSH_SECONDS = 1.0  # what a kill loses at most


def compute_teacher_features(
    images: ImageSource, indices: np.ndarray, teacher: Teacher, directory: str | Path, *,
    crop_mode: InputConfig | None = None, views: int = 1, seed: int = 0, precision: str = "float32",
    rebuild: bool = False,
) -> np.ndarray:  # fmt: skip
    """The teacher's features of images and their views, computed where they are not in the cache yet.

    An interrupted pass goes on where it stopped.

    Args:
        images, indices: the source, and which of its images.
        teacher: frozen.
        directory: of the cache.
        crop_mode: the input of the student, whose crop mode and margin the teacher takes over, so that both see the
            same part of an image.
        views, seed: how many views of each image, the first being the image itself, and the seed of the others.
        precision: what the teacher runs in; "auto": that of the features in the cache, or the faster one.
        rebuild: compute them anew.

    Returns:
        Features (V, N, D) float32, read-only and memory-mapped.

    Raises:
        DistilhashError: the cache is of another teacher, of other images or views or in another precision, or the disk
            has no room for it; a feature is not finite.
    """
    seen = teacher.input.with_crop_of(crop_mode) if crop_mode else teacher.input
    count, total = len(indices), views * len(indices)
    shape = (views, count, teacher.feature_dim)
    key = {
        "teacher": teacher.fingerprint, "teacher_name": teacher.name, "input": fingerprint(seen),
        "images": images.fingerprint, "indices": fingerprint_of_indices(indices),
        "seed": seed if views > 1 else None,  # view 0 does not depend on it
    }  # fmt: skip
    directory = Path(directory)
    done, precision = _open_cache(directory, key, shape, precision, rebuild)
    held = np.load(directory / FEATURES, mmap_mode="r", allow_pickle=False).reshape(total, -1)

    def check(first: int, features_ND: np.ndarray, fix: str) -> None:
        wrong = np.flatnonzero(~np.isfinite(features_ND).all(axis=1))
        if len(wrong):
            image = images.names[int(indices[(first + wrong[0]) % count])]
            raise DistilhashError("a feature of the teacher is not finite", f"{image} in {directory}", fix)

    for first in range(0, done, CHECKED):  # a cache may have come to harm
        check(first, held[first : min(first + CHECKED, done)], "compute the cache anew: --rebuild-features")
    if done < total:
        device, preprocess = current(), Preprocess(seen)
        batch = _batch(seen, device)
        if precision == "auto":
            precision = fastest_precision(folded(teacher), (batch, 3, seen.size, seen.size))
        features_of = frozen(teacher, seen, precision)
        mend = "give the teacher other weights" if precision == "float32" else "take --precision float32"

        def pixels_of(border: tuple[int, int]) -> Tensor:
            view, first = border
            chosen = indices[first : first + batch]
            augmented = make_views(chosen, view, seed) if view else None
            return sent(preprocess.tensor(preprocess.read(images, chosen, augmented)), device)

        # A batch never crosses a view, and a resumed pass has the borders of an uninterrupted one. On another device
        # batches have another size: one that is done in part is done again.
        borders = [(view, first) for view in range(views) for first in range(0, count, batch)]
        borders = [(view, first) for view, first in borders if view * count + min(first + batch, count) > done]
        rows = np.load(directory / FEATURES, mmap_mode="r+", allow_pickle=False).reshape(total, -1)
        flushed = time.monotonic()
        computed = through(pixels_of, features_of, borders, shared=device.type != "cpu")
        with progress("teacher features", total, done=done) as shown:
            for (view, first), of_teacher in zip(borders, computed, strict=True):
                features_ND = of_teacher.cpu().numpy()
                check(view * count + first, features_ND, mend)
                rows[view * count + first :][: len(features_ND)] = features_ND
                before, done = done, view * count + first + len(features_ND)
                shown.add(done - before)
                if time.monotonic() - flushed > FLUSH_SECONDS or done == total:
                    rows.flush()
                    _write_progress(directory, key, shape, precision, done)
                    flushed = time.monotonic()
        del rows
    return np.load(directory / FEATURES, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def frozen(teacher: Teacher, seen: InputConfig, precision: str) -> Callable[[Tensor], Tensor]:
    """The function from pixels (N, 3, S, S) to features (N, D), folded, on the device of this process.

    Args:
        teacher: stays as and where it is.
        seen: its input, by which the images of one forward pass are counted.
        precision: "float32" or "bfloat16".
    """
    device = current()
    network, batch = on(folded(teacher, precision=precision), device), _batch(seen, device)

    def features_of(pixels_N3SS: Tensor) -> Tensor:
        with torch.no_grad():  # autograd would refuse a target that inference mode made
            return torch.cat([network(part) for part in torch.split(pixels_N3SS, batch)])

    return features_of


def precision_of(directory: str | Path) -> str:
    """What the teacher ran in for the features of a cache."""
    return str(read_json(Path(directory, "cache.json"), "feature cache").get("precision", "float32"))


def _batch(seen: InputConfig, device: torch.device) -> int:
    """Images of one forward pass."""
    return max(1, batch_factor(device) * min(BATCH, BATCH_PIXELS // seen.size**2))


def _open_cache(
    directory: Path, key: dict[str, Any], shape: tuple[int, ...], precision: str, rebuild: bool
) -> tuple[int, str]:
    """Rows that are already there, and their precision; the file is laid out where it is missing."""
    target = directory / FEATURES
    if rebuild:  # these two and no more: the directory is one that the user named
        (directory / "cache.json").unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    if (directory / "cache.json").is_file():
        held = read_json(directory / "cache.json", "feature cache")
        held = held if isinstance(held, dict) else {}
        was = held.get("precision", "float32")  # "auto" where no row was kept yet
        same = held.get("key") == key and held.get("shape") == list(shape)
        if not (same and (precision == was or "auto" in (precision, was))):
            old = held.get("key")
            old = old.get("teacher_name", "unknown") if isinstance(old, dict) else "unknown"
            raise DistilhashError(
                "the feature cache is of another teacher, other images or views, or another precision",
                f"{directory}, of teacher {old}",
                "name another with --features, or compute it anew with --rebuild-features",
            )
        if target.is_file() and target.stat().st_size >= int(np.prod(shape)) * 4:
            return int(held["rows"]), was if precision == "auto" else precision
    _lay_out(target, shape)
    _write_progress(directory, key, shape, precision, 0)
    return 0, precision


def _lay_out(target: Path, shape: tuple[int, ...]) -> None:
    # A memory map over a sparse file on a full disk kills the process (SIGBUS): take the room first.
    size = int(np.prod(shape)) * 4
    temporary = target.with_name(".features.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(target.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with temporary.open("rb+") as handle:
                os.posix_fallocate(handle.fileno(), 0, temporary.stat().st_size)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        what = f"cannot write the feature cache {target.parent}, {(size >> 20) + 1} MiB"
        raise refused(what, error, "another place is named with --features") from error


def _write_progress(directory: Path, key: dict[str, Any], shape: tuple[int, ...], precision: str, rows: int) -> None:
    held = {"key": key, "shape": list(shape), "precision": precision, "rows": rows}
    write_json(directory / "cache.json", held)
