"""The verbs index, search and code as functions: they open what is named, do one thing, and return plain data."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.codes import Bytes, hamming
from distilhash.errors import DistilhashError
from distilhash.photos.catalogue import PhotoStore
from distilhash.retrieval.index import Index

TOP = 10
GROUPED_FROM = 4  # times as many hits are looked at as groups are wanted


def index(
    folders: Sequence[str | Path],
    index: str | Path,
    hasher: str | Path | None = None,
    *,
    int8: bool = False,
    hidden: bool = False,
    rebuild: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Bring an index file up to date with folders of photos; return what was done, in photos. Errors: DistilhashError.

    ``hasher``: left out, the one that the index was made with, or a new one, kept beside it (``search.frozen``).
    ``int8``: the int8 model of an exported hasher, which the index remembers.
    """
    from distilhash.photos.encoder import open_encoder
    from distilhash.photos.update import update

    if hasher is None:
        if int8:  # before a new hasher is fitted, which has no int8
            raise DistilhashError("int8 is for an exported hasher", "none", "name it with --hasher")
        from distilhash.photos.default_hasher import hasher_of

        hasher = hasher_of(Path(index), folders, hidden=hidden, rebuild=rebuild, say=say)
    encoder = open_encoder(hasher, int8=int8)
    store = PhotoStore(Path(index))
    try:
        summary = update(store, folders, encoder, hidden=hidden, rebuild=rebuild, say=say)
        count = len(store.codes()[0])
    finally:
        store.close()
    return {"index": str(index), "codes": count, **dataclasses.asdict(summary)}


def search(
    index: str | Path,
    images: Sequence[str | Path] = (),
    *,
    ids: Sequence[int] = (),
    top: int | None = None,
    radius: int | None = None,
    group_duplicates: int | None = None,
    hasher: str | Path | None = None,
    int8: bool = False,
) -> list[dict[str, Any]]:
    """The nearest photos of an index to each image or indexed id, without the query itself.

    ``top``: hits a query (left out: 10, or with ``radius``, in bits, all so near). ``group_duplicates``: hits at most
    so many bits from a nearer hit are listed below it. ``hasher``: left out, the one that the index was made with,
    in the precision that it was made in. ``int8``: the int8 model of an exported hasher.
    Result: for each query "query" and "hits", each with "id", "path", "distance" and "duplicates". Errors: DistilhashError.
    """
    if not images and not ids:
        raise DistilhashError("nothing to search for", fix="name an image, or an id of the index with --id")
    for name, value, least in (("top", top, 1), ("radius", radius, 0), ("group_duplicates", group_duplicates, 0)):
        if value is not None and value < least:
            raise DistilhashError(f"{name} must be at least {least}", value)
    if not Path(index).is_file():
        raise DistilhashError("there is no such index", index, "make it with: distilhash index FOLDER")
    store = PhotoStore(Path(index))
    try:
        with Index.open(index) as codes:
            queries: list[tuple[str, Bytes, int | None]] = []
            if images:
                coded = _codes_for(store, images, hasher, int8)
                queries += [(str(image), coded[i], None) for i, image in enumerate(images)]
            if ids:
                queries += [(str(i), row, int(i)) for i, row in zip(ids, codes.codes_of(ids), strict=True)]
            # One hit more, as the query itself may be among them.
            wanted = (top or TOP) * (1 if group_duplicates is None else GROUPED_FROM) + 1
            every = np.stack([row for _, row, _ in queries])
            found = (
                codes.radius(every, radius)
                if radius is not None
                else list(zip(*codes.search(every, min(wanted, max(len(codes), 1))), strict=True))
            )
            limit = top if top is not None or radius is not None else TOP
            return [
                {"query": name, "hits": _hits(store, codes, pair, (name, own), limit, group_duplicates)}
                for (name, _, own), pair in zip(queries, found, strict=True)
            ]
    finally:
        store.close()


def code(hasher: str | Path, images: Sequence[str | Path], *, int8: bool = False) -> list[dict[str, str]]:
    """The code of each image as hexadecimal digits, the first bit first. Errors: DistilhashError, UnreadableImage.

    ``int8``: the int8 model of an exported hasher.
    """
    from distilhash.photos.encoder import open_encoder

    packed = _encoded(open_encoder(hasher, int8=int8), images)
    return [{"image": str(image), "code": row.tobytes().hex()} for image, row in zip(images, packed, strict=True)]


def hasher_of(about: dict[str, str], index: Path, hasher: str | Path | None = None) -> str | Path:
    """Where the hasher of an index is: ``hasher``, or left out, where it was. Errors: DistilhashError where it is gone."""
    if "encoder" not in about:
        raise DistilhashError("this index does not say which hasher made it", index, "search it by --id")
    place = about.get("encoder_path", "") if hasher is None else hasher
    if hasher is None and not Path(place).exists():
        raise DistilhashError("the hasher of the index is gone", place, "say where it is with --hasher")
    return place


def _codes_for(store: PhotoStore, images: Sequence[str | Path], hasher: str | Path | None, int8: bool) -> Bytes:
    """Codes of images by the hasher of an index."""
    from distilhash.photos.encoder import named, open_encoder

    about = store.about()
    place = named(hasher_of(about, store.path, hasher), int8=int8)
    encoder = open_encoder(place)
    if encoder.fingerprint != about["encoder"]:
        raise DistilhashError(
            "the index was made with another hasher",
            place,
            f"name that one with --hasher, or encode the photos again with: distilhash index "
            f"{' '.join(store.roots())} --hasher {place} --index {store.path} --rebuild",
        )
    return _encoded(encoder, images)


def _encoded(encoder: Any, images: Sequence[str | Path]) -> Bytes:
    from distilhash.data.decode import UnreadableImage

    found = encoder.encode([str(image) for image in images])
    for position, reason in sorted(found.failures.items()):
        raise UnreadableImage(str(images[position]), reason)
    packed: Bytes = found.packed
    return packed


def _hits(
    store: PhotoStore,
    codes: Index,
    found: tuple[Any, Any],
    query: tuple[str, int | None],
    limit: int | None,
    group_duplicates: int | None,
) -> list[dict[str, Any]]:
    """The hits of one query (an image's path, or an id), without itself, perhaps grouped, at most ``limit``."""
    name, own = query
    ids, distances = (array[found[0] >= 0].tolist() for array in found)
    photos = store.photos_of(ids)
    hits = []
    for identity, distance in zip(ids, distances, strict=True):
        path = photos[identity].path if identity in photos else ""
        itself = identity == own if own is not None else distance == 0 and bool(path) and _same_file(path, name)
        if not itself:
            hits.append({"id": identity, "path": path, "distance": distance})
    if group_duplicates is None:
        return [{**hit, "duplicates": []} for hit in hits[:limit]]
    groups: list[dict[str, Any]] = []
    packed = codes.codes_of([hit["id"] for hit in hits])
    leaders: list[int] = []
    for position, hit in enumerate(hits):
        near = np.flatnonzero(hamming(packed[position : position + 1], packed[leaders])[0] <= group_duplicates)
        if near.size:
            groups[int(near[0])]["duplicates"].append(hit)
        else:
            groups.append({**hit, "duplicates": []})
            leaders.append(position)
    return groups[:limit]


def _same_file(one: str, other: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)  # noqa: PTH121
    return False
