"""Near-duplicates: in how many bits their codes may differ, and hits in groups of them.

The radius is measured on an index's own photos, as each hasher and each library has its own. Some photos are edited as
copies usually are, and the distances of these copies are held against the distance of the nearest other photo of the
index, where a photo that shows the same picture is no other one. Of a photo with one copy in the index, recall is how
often the copy lies within the radius, and precision how often what lies there is the copy and not the nearest other
photo. The radius has the greatest recall with a precision of at least MIN_PRECISION; of several, it is the middle one,
as far from the copies as from the other photos, since there are other copies than those that were tried.

Shapes: N codes, n hits, c copies, s photos of the sample, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from distilhash.codes import Bytes, hamming
from distilhash.data.decode import UnreadableImage, decode_image
from distilhash.data.order import CALIBRATION, shuffled
from distilhash.hasher import Hasher
from distilhash.photos.catalogue import Photo, PhotoStore, is_missing
from distilhash.progress import progress
from distilhash.retrieval import backends
from distilhash.retrieval.backends import Ids
from distilhash.retrieval.index import Index

MIN_PRECISION = 0.95  # a photo that is taken for a copy of another one is hidden behind it
COMPARED, EDITED = 300, 100  # photos of the sample: so many are compared with the others, and so many edited
FEWEST = 20  # photos: of fewer nothing is measured
GROWTH = 1.5  # it is measured again when the index holds so many times the codes, or its part
SIDE, THUMBNAIL = 512, 32  # pixels: the shorter side of what is edited; both sides of what is compared
MOST_BYTES = 150 << 20  # that a photo of the sample may take, beside the memory that indexing has taken
CHECKED = 8  # nearest photos, among which the first that is no copy is looked for
SAME_PICTURE = 0.85  # correlation of thumbnails
GROUPED_FROM = 4  # times as many hits are searched first as groups are wanted
KEY = "near_duplicates"

Distances = NDArray[np.int32]
Share = Annotated[float, Field(ge=0, le=1)]
# What an index stores: bits, recall, precision, photos that were edited, the hasher, and the number of codes.
_STORED = TypeAdapter(tuple[NonNegativeInt, Share, Share, PositiveInt, str, PositiveInt])


def _recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file, formats=["JPEG"]).convert("RGB")


EDITS: tuple[Callable[[Image.Image], Image.Image], ...] = (
    lambda image: image.reduce(2),
    _recompressed,
    lambda image: image.crop((image.width // 12, image.height // 12, image.width, image.height)),
    lambda image: image.rotate(3, Image.Resampling.BILINEAR),
    lambda image: ImageEnhance.Brightness(image).enhance(0.75),
    lambda image: ImageEnhance.Color(image).enhance(0.3),
)


class NearDuplicates(NamedTuple):
    """In how many bits near-duplicates of an index may differ, and the estimates that led to it."""

    bits: int
    num_bits: int  # K
    recall: float | None  # None where nothing was measured
    precision: float | None
    photos: int  # that were edited

    def __str__(self) -> str:
        """One line for a person."""
        said = f"near-duplicates differ in at most {self.bits} of {self.num_bits} bits"
        if self.recall is None or self.precision is None:
            return f"{said}, by the code's length: distilhash index measures it on {FEWEST} photos or more"
        estimates = f"estimated recall {self.recall:.2f} and precision {self.precision:.2f}"
        return f"{said} ({estimates}, from edited copies of {self.photos} photos)"


def near_duplicates(about: Mapping[str, str]) -> NearDuplicates:
    """What an index says of its near-duplicates (``Store.about()``); where that is nothing, 2 bits in 64."""
    num_bits = int(about.get("num_bits", 0))
    found = _stored(about)
    return NearDuplicates(max(2, num_bits // 32), num_bits, None, None, 0) if found is None else found[0]


def measure(store: PhotoStore, encoder: Hasher) -> NearDuplicates:
    """The near-duplicates of an index, measured where that was not done for this hasher and about so many photos.

    Args:
        store: an index that is up to date, with the writer's lock.
        encoder: the one that made its codes.
    """
    about, (ids_N, codes_NP) = store.about(), store.codes()
    found = _stored(about)
    fits = found is not None and found[1] == encoder.fingerprint and 1 / GROWTH < len(ids_N) / found[2] < GROWTH
    if fits and len(ids_N) >= FEWEST:
        return near_duplicates(about)
    value = "null"  # what was measured before is of other photos
    if len(ids_N) >= FEWEST:
        copies_c, others_s, edited = _distances(store, encoder, ids_N, codes_NP)
        if min(edited, len(others_s)) >= FEWEST:
            best = best_radius(copies_c, others_s, encoder.num_bits)
            value = json.dumps([*best, edited, encoder.fingerprint, len(ids_N)])
    if value != about.get(KEY, "null"):
        with store.writing():
            store.describe(**{KEY: value})
    return near_duplicates(store.about())


def best_radius(copies_c: Distances, others_s: Distances, num_bits: int) -> tuple[int, float, float]:
    """The middle one of the radii of the greatest recall with a precision of MIN_PRECISION; 0 bits where none has it.

    Args:
        copies_c: distance of each edited copy from its photo, bits.
        others_s: distance of the nearest other photo from each photo of the sample, bits.
        num_bits: K.

    Returns:
        The radius in bits, its recall and its precision.
    """
    radii = np.arange(num_bits + 1)
    recall, wrong = (
        np.searchsorted(np.sort(distances), radii, side="right") / len(distances) for distances in (copies_c, others_s)
    )
    found = recall + wrong
    precision = np.divide(recall, found, out=np.zeros(len(radii)), where=found > 0)
    sound = np.flatnonzero(precision >= MIN_PRECISION)
    equal = sound[recall[sound] == recall[sound].max(initial=0)]
    best = int(equal[(len(equal) - 1) // 2]) if equal.size else 0
    return best, float(recall[best]), float(precision[best])


def nearest_groups(
    index: Index, code_1P: Bytes, radius: int | None, *, limit: int | None, within: int | None = None,
    skip: Sequence[int] = (),
) -> list[tuple[Ids, Distances]]:  # fmt: skip
    """The nearest photos to a code, each with its near-duplicates.

    A hit at most ``radius`` bits from a nearer hit that leads a group belongs to the first such group. The search goes
    on until there are as many groups as are wanted.

    Args:
        radius: of a group, bits; None: each hit is a group of its own.
        limit: most groups; None for all.
        within: largest distance of a hit, bits; None for any.
        skip: ids that are no hits.

    Returns:
        Ids and distances from the query for each group, by (distance, id); the groups in the order of their first.
    """
    count = len(index)
    wanted = min(count, (count if limit is None else limit * (1 if radius is None else GROUPED_FROM)) + len(skip))
    while True:
        if within is not None:
            wanted, (ids_n, away_n) = count, index.radius(code_1P, within)[0]
        else:
            ids_n, away_n = (found[0] for found in index.search(code_1P, max(1, wanted)))
        hits = (ids_n >= 0) & ~np.isin(ids_n, skip)
        ids_n, away_n = ids_n[hits], away_n[hits]
        if radius is None:
            return [(ids_n[i : i + 1], away_n[i : i + 1]) for i in range(len(ids_n[:limit]))]
        codes_nP = index.codes_of(ids_n)
        free_n, leaders = np.ones(len(ids_n), np.bool_), list[int]()
        while free_n.any() and (limit is None or len(leaders) < limit):
            leaders.append(int(free_n.argmax()))
            free_n &= hamming(codes_nP[leaders[-1:]], codes_nP)[0] > radius
        if wanted >= count or len(leaders) == limit:
            break
        wanted = min(count, GROUPED_FROM * wanted)
    if not leaders:
        return []
    taken, groups = np.array(skip, np.int64), list[tuple[Ids, Distances]]()
    # From the index, because a group may reach beyond the hits that were searched.
    for near, _ in index.radius(codes_nP[leaders], radius):
        ids = near[~np.isin(near, taken)]
        away = hamming(code_1P, index.codes_of(ids))[0].astype(np.int32)
        order = np.lexsort((ids, away))
        order = order if within is None else order[away[order] <= within]
        taken = np.append(taken, ids)
        groups.append((ids[order], away[order]))
    return groups


def present_groups(
    photos_of: Callable[[Iterable[int]], dict[int, Photo]], index: Index, code_1P: Bytes, radius: int | None, *,
    limit: int | None, within: int | None, skip: Sequence[int],
) -> tuple[list[tuple[Ids, Distances]], dict[int, Photo], set[int]]:  # fmt: skip
    """nearest_groups(), in which photos whose files are missing come after all others.

    Where some are missing, GROUPED_FROM times as many groups are searched for others.

    Args:
        photos_of: the catalogue's photos by id.

    Returns:
        The groups, their photos, and the ids of those that are missing.
    """
    for most in [limit] if limit is None else [limit, GROUPED_FROM * limit]:
        groups = nearest_groups(index, code_1P, radius, limit=most, within=within, skip=skip)
        photos = photos_of(int(identity) for ids, _ in groups for identity in ids)
        missing = {identity for identity, photo in photos.items() if is_missing(photo.path)}
        if not missing:
            break
    gone = np.array(sorted(missing), np.int64)
    orders = [np.argsort(np.isin(ids, gone), kind="stable") for ids, _ in groups]
    groups = [(ids[order], away[order]) for (ids, away), order in zip(groups, orders, strict=True)]
    groups.sort(key=lambda group: (group[0][0] in missing, group[1][0], group[0][0]))
    return groups[:limit], photos, missing


def _stored(about: Mapping[str, str]) -> tuple[NearDuplicates, str, int] | None:
    """What was measured, for which hasher, and for how many codes; None where nothing sound is stored."""
    try:
        bits, recall, precision, photos, fingerprint, count = _STORED.validate_json(about.get(KEY, "null"), strict=True)
    except ValidationError:
        return None
    found = NearDuplicates(bits, int(about.get("num_bits", 0)), recall, precision, photos)
    return (found, fingerprint, count) if found.bits <= found.num_bits else None


def _distances(store: PhotoStore, encoder: Hasher, ids_N: Ids, codes_NP: Bytes) -> tuple[Distances, Distances, int]:
    """Distances of edited copies from their photos and of the nearest other photos; how many photos were edited.

    Left out are photos that cannot be read; of the nearest ones, those that show the same picture.
    """
    positions_s = np.searchsorted(ids_N, shuffled(ids_N, 0, CALIBRATION)[:COMPARED])
    near, away = backends.nearest(codes_NP, codes_NP[positions_s], min(CHECKED + 1, len(ids_N)))
    copies, others, edited = [np.empty(0, np.int32)], list[int](), 0
    with progress("measuring near-duplicates", len(positions_s), "photos") as counter:
        for position, near_ids, distances in zip(positions_s, ids_N[near].tolist(), away.tolist(), strict=True):
            identity = int(ids_N[position])
            photos = store.photos_of([identity, *near_ids])
            picture = _picture(photos[identity], SIDE if edited < EDITED else THUMBNAIL)
            if picture is not None:
                if edited < EDITED:
                    differing = encoder.encode([edit(picture) for edit in EDITS]) ^ codes_NP[position]
                    copies.append(np.bitwise_count(differing).sum(axis=1, dtype=np.int32))
                    edited += 1
                grey, content = _grey(picture), photos[identity].content
                found = zip((photos[other] for other in near_ids), distances, strict=True)
                different = (
                    away for photo, away in found if photo.content != content and not _same_picture(grey, photo)
                )
                others += islice(different, 1)
            counter.add(1)
    return np.concatenate(copies), np.array(others, np.int32), edited


def _grey(picture: Image.Image) -> NDArray[np.float64]:
    """A picture as few grey pixels of mean 0 and sum of squares 1."""
    small = _within(picture, THUMBNAIL).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    grey: NDArray[np.float64] = np.asarray(small, np.float64)
    grey = grey - grey.mean()
    return grey / max(1.0, float(np.linalg.norm(grey)))


def _same_picture(grey: NDArray[np.float64], photo: Photo) -> bool:
    """Whether a photo shows the same picture, or its mirror image."""
    picture = _picture(photo, THUMBNAIL)
    if picture is None:
        return False
    other = _grey(picture)
    return bool(max((grey * other).sum(), (grey * other[:, ::-1]).sum()) >= SAME_PICTURE)


def _picture(photo: Photo, side: int) -> Image.Image | None:
    """A photo as in _within(); None where it cannot be read or is large."""
    try:
        return _within(decode_image(Path(photo.path), photo.path, side, MOST_BYTES), side)
    except UnreadableImage:
        return None


def _within(picture: Image.Image, side: int) -> Image.Image:
    """A picture whose sides have at most ``side`` and 4 * ``side`` pixels."""
    scale = min(1.0, side / min(picture.size), 4 * side / max(picture.size))
    return picture.resize([max(1, round(length * scale)) for length in picture.size], reducing_gap=2.0)
