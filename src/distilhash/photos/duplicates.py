"""Near-duplicates: in how many bits their codes may differ, and hits in groups of them.

The radius is measured on an index's own photos, as each hasher and each library has its own. Some photos are edited as
copies usually are, and the distances of these copies are held against the distance of the nearest other photo of the
index, where a photo that shows the same picture is no other one. Of a photo with one copy in the index, recall is how
often the copy lies within the radius, and precision how often what lies there is the copy and not the nearest other
photo. The radius has the greatest recall with a precision of at least MIN_PRECISION; of several, it is the middle one,
as far from the copies as from the other photos, since there are other copies than those that were tried. One file: the
radius is measured for these groups alone.

Shapes: N codes, n hits, c copies, s photos of the sample, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageEnhance

from distilhash.codes import Bytes, hamming
from distilhash.data.decode import UnreadableImage, decode_image
from distilhash.data.order import CALIBRATION, shuffled
from distilhash.photos.catalogue import Photo, PhotoStore, is_missing
from distilhash.photos.encoder import Encoder, PhotoFiles
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
AT_ONCE = 2  # photos whose copies are in memory
GROUPED_FROM = 4  # times as many hits are searched first as groups are wanted
KEY = "near_duplicates"

Distances = NDArray[np.int32]


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


def measure(store: PhotoStore, encoder: Encoder) -> NearDuplicates:
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
        sample = shuffled(ids_N, 0, CALIBRATION)[:COMPARED]
        copies_c, edited = _copies(store, encoder, ids_N, codes_NP, sample)
        others_s = _others(store, ids_N, codes_NP, sample) if edited >= FEWEST else np.empty(0, np.int32)
        if len(others_s) >= FEWEST:
            bits, recall, precision = best_radius(copies_c, others_s, encoder.num_bits)
            value = json.dumps([bits, recall, precision, edited, encoder.fingerprint, len(ids_N)])
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
    num_bits = int(about.get("num_bits", 0))
    try:
        bits, recall, precision, photos, fingerprint, count = json.loads(about.get(KEY, "null"))
        found = NearDuplicates(bits, num_bits, float(recall), float(precision), int(photos))
        whole = type(bits) is int and 0 <= bits <= num_bits and photos > 0 and count > 0
        return (found, str(fingerprint), int(count)) if whole and 0 <= recall <= 1 and 0 <= precision <= 1 else None
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _copies(store: PhotoStore, encoder: Encoder, ids_N: Ids, codes_NP: Bytes, sample: Ids) -> tuple[Distances, int]:
    """The distance of every edited copy from its photo, and the number of photos that were edited."""
    distances, edited = [np.empty(0, np.int32)], 0
    with progress("measuring near-duplicates", min(EDITED, len(sample)), "photos") as counter:
        for start in range(0, min(EDITED, len(sample)), AT_ONCE):
            ids = sample[start : min(start + AT_ONCE, EDITED)]
            pictures, rows = list[Image.Image](), list[int]()
            for identity, photo in store.photos_of(ids.tolist()).items():
                picture = _picture(photo, SIDE)
                if picture is not None:
                    pictures += [edit(picture) for edit in EDITS]
                    rows += len(EDITS) * [int(np.searchsorted(ids_N, identity))]
                    edited += 1
            if pictures:
                differing = encoder.run(_Pictures(pictures)) ^ codes_NP[rows]
                distances.append(np.bitwise_count(differing).sum(axis=1, dtype=np.int32))
            counter.add(len(ids))
    return np.concatenate(distances), edited


def _others(store: PhotoStore, ids_N: Ids, codes_NP: Bytes, sample: Ids) -> Distances:
    """The distance of the nearest photo of another picture from each photo of the sample.

    Left out are photos that cannot be read, and those whose CHECKED nearest ones all show the same picture.
    """
    queries_sP = codes_NP[np.searchsorted(ids_N, sample)]
    positions, distances = backends.nearest(codes_NP, queries_sP, min(CHECKED + 1, len(ids_N)))
    others = []
    for identity, near, away in zip(sample.tolist(), ids_N[positions].tolist(), distances.tolist(), strict=True):
        photos = store.photos_of([identity, *near])
        own = _grey(photos[identity])
        if own is None:
            continue
        for other, distance in zip(near, away, strict=True):
            same = photos[other].content == photos[identity].content  # as is the photo itself
            if not same and not _same_picture(own, _grey(photos[other])):
                others.append(distance)
                break
    return np.array(others, np.int32)


def _grey(photo: Photo) -> NDArray[np.float64] | None:
    """A photo as few grey pixels of mean 0 and sum of squares 1; None where it cannot be read."""
    picture = _picture(photo, THUMBNAIL)
    if picture is None:
        return None
    small = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    grey: NDArray[np.float64] = np.asarray(small, np.float64)
    grey = grey - grey.mean()
    return grey / max(1.0, float(np.linalg.norm(grey)))


def _same_picture(one: NDArray[np.float64], other: NDArray[np.float64] | None) -> bool:
    """Whether two photos show the same picture, or its mirror image."""
    return other is not None and max((one * other).sum(), (one * other[:, ::-1]).sum()) >= SAME_PICTURE


def _picture(photo: Photo, side: int) -> Image.Image | None:
    """A photo whose sides have at most ``side`` and 4 * ``side`` pixels; None where it cannot be read or is large."""
    try:
        picture = decode_image(Path(photo.path), photo.path, side, MOST_BYTES)
    except UnreadableImage:
        return None
    scale = min(1.0, side / min(picture.size), 4 * side / max(picture.size))
    return picture.resize([max(1, round(length * scale)) for length in picture.size], reducing_gap=2.0)


class _Pictures(PhotoFiles):
    """Pictures in memory as a source of images."""

    decodes = False

    def __init__(self, pictures: Sequence[Image.Image]) -> None:
        super().__init__([""] * len(pictures))
        self.pictures = pictures

    def read(self, indices: ArrayLike) -> list[Image.Image]:
        """The pictures of these indices."""
        return [self.pictures[index] for index in np.asarray(indices).tolist()]
