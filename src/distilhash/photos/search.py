"""The commands index, search and code, as ``distilhash.api`` describes them: open what is named, return plain data.

Shapes: Q queries, P bytes of a packed code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.codes import Bytes, hamming
from distilhash.config import ScanConfig
from distilhash.data.decode import UnreadableImage
from distilhash.data.folders import told_others
from distilhash.errors import DistilhashError
from distilhash.photos.catalogue import PhotoStore, rebuild_file
from distilhash.photos.encoder import (
    Encoder,
    default_hasher,
    default_place,
    encoder_of,
    fitted_to,
    is_default,
    open_encoder,
    rebuild_pays,
    settle_default,
)
from distilhash.photos.update import Summary, checked_roots, forget, update
from distilhash.progress import log
from distilhash.retrieval.index import Index

TOP = 10
GROUPED_FROM = 4  # times as many hits are searched as groups are wanted


def index(
    folders: Sequence[str | Path], index: str | Path, hasher: str | Path | None, *, int8: bool, scan: ScanConfig | None,
    verify: bool, prune: bool, forgotten: Sequence[str | Path], rebuild: bool,
) -> dict[str, Any]:  # fmt: skip
    """Bring an index file up to date with folders of photos; its codes, and the fields of ``update.Summary``."""
    if int8 and hasher is None:  # before a default hasher is fitted, which has no int8 model
        raise DistilhashError("int8 is for an exported hasher", "none", "name it with --hasher")
    roots, summary, fitted = checked_roots(folders), Summary(), None
    with contextlib.closing(PhotoStore(Path(index))) as store:
        dropped = forget(store, forgotten) if forgotten else 0
        if roots or not forgotten:
            encoder = _encoder_for(store, roots, hasher, int8=int8, scan=scan, rebuild=rebuild)
            place, new = default_place(store.path), default_place(rebuild_file(store.path))
            final = encoder._replace(path=str(place)) if encoder.path == str(new) else encoder
            summary = update(
                store, roots, final, scan=scan, verify=verify, prune=prune, rebuild=rebuild or final is not encoder
            )
            if final is not encoder:
                settle_default(store)
            fitted = fitted_to(place) if final.path == str(place) else None
        summary.deleted += dropped
        codes = len(store.codes()[0])
    if summary.other_files:
        log.info("%s", told_others(summary.other_files))
    pays = fitted is not None and rebuild_pays(fitted, codes)
    if pays:
        log.warning(
            "the default hasher is fitted to %s photos, and the index holds %s: distilhash index --index %s --rebuild "
            "fits it to them and encodes all again", f"{fitted:,}", f"{codes:,}", shlex.quote(str(index)),
        )  # fmt: skip
    return {"index": str(index), "codes": codes, **dataclasses.asdict(summary), "rebuild_pays": pays}


def _encoder_for(
    store: PhotoStore, roots: list[str], hasher: str | Path | None, *, int8: bool, scan: ScanConfig | None,
    rebuild: bool,
) -> Encoder:  # fmt: skip
    """The hasher that is named, or that made the index, or else the default one."""
    if hasher is not None:
        return open_encoder(hasher, int8=int8)
    about = store.about()
    if "encoder" in about and not (rebuild and is_default(about, store.path)):
        return encoder_of(store)
    everything = sorted({*roots, *store.roots()})
    if not everything:
        raise DistilhashError("there is no folder to index", store.path, "name one")
    return open_encoder(default_hasher(store, everything, scan=scan))


def search(
    index: str | Path, images: Sequence[str | Path], *, ids: Sequence[int], top: int | None, radius: int | None,
    group_duplicates: int | None, hasher: str | Path | None, int8: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """The hits of each query, nearest first by (distance, id), without the query itself."""
    if not images and not ids:
        raise DistilhashError("nothing to search for", fix="name an image, or an id of the index with --id")
    for name, value, least in (("top", top, 1), ("radius", radius, 0), ("group_duplicates", group_duplicates, 0)):
        if value is not None and value < least:
            raise DistilhashError(f"{name} must be at least {least}", value)
    if not os.path.isfile(index):  # noqa: PTH113 (Path's raises where access is denied)
        raise DistilhashError("there is no such index", index, "make it with: distilhash index FOLDER")
    with contextlib.closing(PhotoStore(Path(index))) as store, Index.open(index) as codes:
        # (image or id, its code, its id)
        queries: list[tuple[str, Bytes, int | None]] = []
        if images:
            coded = _encoded(encoder_of(store, hasher, int8=int8), images)
            queries += [(str(image), row, None) for image, row in zip(images, coded, strict=True)]
        if ids:
            queries += [(str(i), row, int(i)) for i, row in zip(ids, codes.codes_of(ids), strict=True)]
        codes_QP = np.stack([row for _, row, _ in queries])
        if radius is not None:
            limit, found = top, codes.radius(codes_QP, radius)
        else:  # one more, as the query itself may be among them
            limit = top or TOP
            wanted = limit * (1 if group_duplicates is None else GROUPED_FROM) + 1
            found = list(zip(*codes.search(codes_QP, min(wanted, max(len(codes), 1))), strict=True))
        answers = []
        for (query, _, own), (hit_ids, distances) in zip(queries, found, strict=True):
            hits = _hits(store, hit_ids, distances, query, own)
            if group_duplicates is not None:
                hits = _grouped(hits, codes.codes_of([hit["id"] for hit in hits]), group_duplicates)
            answers.append({"query": query, "hits": hits[:limit]})
        return answers


def code(hasher: str | Path, images: Sequence[str | Path], *, int8: bool) -> list[dict[str, str]]:
    """The code of each image, as hexadecimal digits, first bit first."""
    packed = _encoded(open_encoder(hasher, int8=int8), images)
    return [{"image": str(image), "code": row.tobytes().hex()} for image, row in zip(images, packed, strict=True)]


def _encoded(encoder: Encoder, images: Sequence[str | Path]) -> Bytes:
    found = encoder.encode([str(image) for image in images])
    for position, reason in sorted(found.failures.items()):
        raise UnreadableImage(str(images[position]), reason)
    return found.packed


def _hits(store: PhotoStore, ids: Any, distances: Any, query: str, own: int | None) -> list[dict[str, Any]]:
    """The hits of one query (an image's path, or an id) without itself; the id -1 is none."""
    there = ids >= 0
    ids, distances = ids[there].tolist(), distances[there].tolist()
    photos = store.photos_of(ids)
    hits = []
    for identity, distance in zip(ids, distances, strict=True):
        path = photos[identity].path if identity in photos else ""
        itself = identity == own if own is not None else distance == 0 and bool(path) and _same_file(path, query)
        if not itself:
            hits.append({"id": identity, "path": path, "distance": distance, "duplicates": []})
    return hits


def _grouped(hits: list[dict[str, Any]], packed: Bytes, radius: int) -> list[dict[str, Any]]:
    """Each hit at most ``radius`` bits from a nearer hit that leads a group moves to the duplicates of that one."""
    leaders: list[int] = []
    for position, hit in enumerate(hits):
        near = np.flatnonzero(hamming(packed[position : position + 1], packed[leaders])[0] <= radius)
        if near.size:
            # Without an empty list of duplicates of its own.
            hits[leaders[int(near[0])]]["duplicates"].append({key: hit[key] for key in ("id", "path", "distance")})
        else:
            leaders.append(position)
    return [hits[leader] for leader in leaders]


def _same_file(one: str, other: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)  # noqa: PTH121
    return False
