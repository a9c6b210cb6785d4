"""The commands index, search and code, as ``distilhash.api`` describes them: open what is named, return plain data.

Shapes: Q queries, P bytes of a packed code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from distilhash.codes import Bytes
from distilhash.config import ScanConfig
from distilhash.data.folders import told_others
from distilhash.errors import DistilhashError
from distilhash.hasher import Hasher
from distilhash.photos.catalogue import Photo, PhotoStore, is_missing, rebuild_file
from distilhash.photos.duplicates import Distances, measure, near_duplicates, present_groups
from distilhash.photos.encoder import (
    default_hasher,
    default_place,
    encoder_of,
    fitted_to,
    is_default,
    rebuild_pays,
    settle_default,
)
from distilhash.photos.update import Summary, checked_roots, forget, update
from distilhash.progress import log
from distilhash.retrieval.backends import Ids
from distilhash.retrieval.index import Index
from distilhash.retrieval.store import MAX_BITS

TOP = 10


def index(
    folders: Sequence[str | Path], index: str | Path, hasher: str | Path | None, *, int8: bool, scan: ScanConfig | None,
    verify: bool, prune: bool, forgotten: Sequence[str | Path], rebuild: bool, bits: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Bring an index file up to date with folders of photos; its codes, and the fields of ``update.Summary``."""
    if int8 and hasher is None:  # before a default hasher is fitted, which is int8 in any case
        raise DistilhashError("int8 is for an exported hasher", "none", "name it with --hasher")
    if bits is not None and (hasher is not None or not 1 <= bits <= MAX_BITS):
        raise DistilhashError("bits are for the default hasher, 1 or more", bits, "leave out --bits or --hasher")
    roots, summary, fitted = checked_roots(folders), Summary(), None
    with contextlib.closing(PhotoStore(Path(index))) as store:
        dropped = forget(store, forgotten) if forgotten else 0
        if roots or not forgotten:
            encoder = _encoder_for(store, roots, hasher, int8=int8, scan=scan, rebuild=rebuild, bits=bits)
            place, new = default_place(store.path), default_place(rebuild_file(store.path))
            final = dataclasses.replace(encoder, path=str(place)) if encoder.path == str(new) else encoder
            summary = update(
                store, roots, final, scan=scan, verify=verify, prune=prune, rebuild=rebuild or final is not encoder
            )
            if final is not encoder:
                settle_default(store)
            fitted = fitted_to(place) if final.path == str(place) else None
            measure(store, final)
        summary.deleted += dropped
        codes, near = len(store.codes()[0]), near_duplicates(store.about())
    if summary.other_files:
        log.info("%s", told_others(summary.other_files))
    pays = fitted is not None and rebuild_pays(fitted, codes)
    if pays:
        log.warning(
            "the default hasher is fitted to %s photos, and the index holds %s: distilhash index --index %s --rebuild "
            "fits it to them and encodes all again", f"{fitted:,}", f"{codes:,}", shlex.quote(str(index)),
        )  # fmt: skip
    done = {"index": str(index), "codes": codes, **dataclasses.asdict(summary), "rebuild_pays": pays}
    return {**done, "near_duplicates": near._asdict()}


def _encoder_for(
    store: PhotoStore, roots: list[str], hasher: str | Path | None, *, int8: bool, scan: ScanConfig | None,
    rebuild: bool, bits: int | None,
) -> Hasher:  # fmt: skip
    """The hasher that is named, or that made the index, or else the default one."""
    if hasher is not None:
        return Hasher.open(hasher, int8=int8)
    about = store.about()
    if "encoder" in about and not (rebuild and is_default(about, store.path)):
        if bits not in (None, int(about["num_bits"])):
            got, fix = f"{bits} instead of {about['num_bits']}", "add --rebuild to encode all photos again"
            if not is_default(about, store.path):
                fix = "leave out --bits, as the hasher of this index is not the default one"
            raise DistilhashError("the index has codes of another length", got, fix)
        return encoder_of(store)
    everything = sorted({*roots, *store.roots()})
    if not everything:
        raise DistilhashError("there is no folder to index", store.path, "name one")
    return Hasher.open(default_hasher(store, everything, bits=bits, scan=scan))


def search(
    index: str | Path, images: Sequence[str | Path | Any], *, ids: Sequence[int], top: int | None, radius: int | None,
    group_duplicates: int | Literal["auto"] | None, hasher: str | Path | None, int8: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """The hits of each query, those whose files are there first, by (distance, id), without the query itself."""
    if not images and not ids:
        raise DistilhashError("nothing to search for", fix="name an image, or an id of the index with --id")
    for name, value, least in (("top", top, 1), ("radius", radius, 0), ("group_duplicates", group_duplicates, 0)):
        if isinstance(value, int) and value < least:
            raise DistilhashError(f"{name} must be at least {least}", value)
    with _existing(index) as store, Index.open(index) as codes:
        # (image or id, its code, its id)
        queries: list[tuple[str, Bytes, int | None]] = []
        if images:
            coded = encoder_of(store, hasher, int8=int8).encode(images)
            names = [str(image) if isinstance(image, str | Path) else f"image {i}" for i, image in enumerate(images)]
            queries += [(name, row, None) for name, row in zip(names, coded, strict=True)]
        if ids:
            queries += [(str(i), row, int(i)) for i, row in zip(ids, codes.codes_of(ids), strict=True)]
        if group_duplicates == "auto":
            near = near_duplicates(store.about())
            log.info("%s", near)
            group_duplicates = near.bits
        limit = top or (TOP if radius is None else None)
        answers = []
        for query, code_P, own in queries:
            skip = _itself(store, codes, query, code_P) if own is None else [own]
            groups, photos, missing = present_groups(
                store.photos_of, codes, code_P[None], group_duplicates, limit=limit, within=radius, skip=skip
            )
            answers.append({"query": query, "hits": [_hit(photos, missing, *group) for group in groups]})
        return answers


def info(index: str | Path) -> dict[str, Any]:
    """What an index holds, as ``distilhash.api.info`` describes it."""
    with _existing(index) as store:
        about, photos = store.about(), store.photos()
        return {
            "index": str(index),
            "bytes": store.path.stat().st_size,
            "photos": sum(photo.failure is None for photo in photos),
            "failures": sum(photo.failure is not None for photo in photos),
            "missing": sum(is_missing(photo.path) for photo in photos),
            "folders": store.roots(),
            "bits": int(about.get("num_bits", 0)),
            "hasher": about.get("encoder_path", ""),
            "near_duplicates": near_duplicates(about)._asdict(),
        }


def _existing(index: str | Path) -> contextlib.closing[PhotoStore]:
    if not os.path.isfile(index):  # noqa: PTH113 (Path's raises where access is denied)
        raise DistilhashError("there is no such index", index, "make it with: distilhash index FOLDER")
    return contextlib.closing(PhotoStore(Path(index)))


def code(hasher: str | Path, images: Sequence[str | Path], *, int8: bool) -> list[dict[str, str]]:
    """The code of each image, as hexadecimal digits, first bit first."""
    packed = Hasher.open(hasher, int8=int8).encode(images)
    return [{"image": str(image), "code": row.tobytes().hex()} for image, row in zip(images, packed, strict=True)]


def _itself(store: PhotoStore, codes: Index, query: str, code_P: Bytes) -> list[int]:
    """The id of the photo that a query's file is, if it is one of the index."""
    ids, _ = codes.radius(code_P[None], 0)[0]
    return [photo.id for photo in store.photos_of(ids.tolist()).values() if _same_file(photo.path, query)]


def _hit(photos: Mapping[int, Photo], missing: set[int], ids: Ids, distances: Distances) -> dict[str, Any]:
    """A hit, and its near-duplicates."""
    first, *others = (
        {
            "id": identity, "path": photos[identity].path if identity in photos else "", "distance": distance,
            "missing": identity in missing,
        }
        for identity, distance in zip(ids.tolist(), distances.tolist(), strict=True)
    )  # fmt: skip
    return {**first, "duplicates": others}


def _same_file(one: str, other: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)  # noqa: PTH121
    return False
