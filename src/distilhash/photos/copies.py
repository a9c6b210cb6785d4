"""The command duplicates: every group of near-duplicates of a library, the best copy first. It never deletes anything.

A group is a star: its best copy, and all photos of no earlier group within the radius of it. Best is the largest
picture, then the largest file, then the first path; groups are made in this order of their best copies. So no chain of
likenesses joins photos that differ, and who keeps the best copy keeps something near to each of the others.

Shapes: N codes, n photos that have a near-duplicate, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distilhash.codes import Bytes, hamming
from distilhash.config import ScanConfig
from distilhash.data.decode import UnreadableImage, decode_image, image_size, jpeg
from distilhash.errors import DistilhashError, printable
from distilhash.files import write_atomically
from distilhash.photos.catalogue import Photo, PhotoStore, is_missing
from distilhash.photos.duplicates import near_duplicates
from distilhash.photos.search import index as make_index
from distilhash.progress import log, progress
from distilhash.retrieval import backends

SIDE = 240  # pixels: the shorter side of a thumbnail
Size = tuple[int, int]  # width and height, pixels; (0, 0) where the file cannot be read


class Copy(NamedTuple):
    """A photo of a group."""

    photo: Photo
    size: Size
    distance: int  # from the best copy, bits


def duplicates(
    library: str | Path, *, radius: int | None, table: str | Path | None, sheet: str | Path | None,
    hasher: str | Path | None, int8: bool, scan: ScanConfig | None,
) -> dict[str, Any]:  # fmt: skip
    """The groups of an index, or of a folder by an index that is made for this once."""
    for file, ending in ((table, ".csv"), (sheet, ".html")):
        if file is not None and Path(file).suffix.lower() != ending:  # or a photo might be replaced
            raise DistilhashError(f"the name of this file must end in {ending}", file)
    path = Path(library)
    if not path.exists():
        raise DistilhashError("there is no such index or folder", library, "make an index: distilhash index FOLDER")
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            log.info("a folder is encoded for this once; distilhash index %s keeps an index", path)
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "photos.index"
            make_index(
                [library], path, hasher, int8=int8, scan=scan, verify=False, prune=False, forgotten=(), rebuild=False
            )
        elif hasher is not None or int8:
            raise DistilhashError("an index has its codes already", library, "name a hasher for a folder alone")
        store = stack.enter_context(contextlib.closing(PhotoStore(path)))
        near = near_duplicates(store.about())
        if radius is not None and not 0 <= radius <= near.num_bits:
            raise DistilhashError(f"the radius must lie in 0 .. {near.num_bits} bits", radius)
        if radius is None:
            log.info("%s", near)
            radius = near.bits
        photos, codes_nP, missing = candidates(store, radius)
        sizes = list(_mapped("reading sizes", size_of, photos))
        groups = star_groups(photos, sizes, codes_nP, radius)
        found: dict[str, Any] = {
            "library": str(library), "photos": len(store.codes()[0]), "missing": missing, "radius": radius,
            "bits": near.num_bits, "groups": [[described(copy) for copy in group] for group in groups],
        }  # fmt: skip
    if table is not None:
        write_atomically(table, _csv(found["groups"]))
    if sheet is not None:
        write_atomically(sheet, _sheet(found))
    return found


def candidates(store: PhotoStore, radius: int) -> tuple[list[Photo], Bytes, int]:
    """The photos that have another within the radius, with their codes (n, P); how many more of them are missing."""
    ids_N, codes_NP = store.codes()
    rows = np.flatnonzero(backends.have_near(codes_NP, radius)) if len(ids_N) else np.empty(0, np.int64)
    photos = store.photos_of(ids_N[rows].tolist())
    there = [row for row in rows.tolist() if ids_N[row] in photos and not is_missing(photos[int(ids_N[row])].path)]
    return [photos[int(ids_N[row])] for row in there], codes_NP[there], len(rows) - len(there)


def star_groups(photos: Sequence[Photo], sizes: Sequence[Size], codes_nP: Bytes, radius: int) -> list[list[Copy]]:
    """The groups of two photos or more, those whose further copies take most bytes first.

    Returns:
        In each group the best copy, and the others by (distance, size, bytes, path).
    """
    order = sorted(range(len(photos)), key=lambda i: (-sizes[i][0] * sizes[i][1], -photos[i].size, photos[i].path))
    ordered_nP, free_n, groups = codes_nP[order], np.ones(len(order), np.bool_), list[list[Copy]]()
    for best in range(len(order)):
        if free_n[best]:
            away = hamming(ordered_nP[best : best + 1], ordered_nP)[0]
            near = np.flatnonzero(free_n & (away <= radius))
            free_n[near] = False
            group = [Copy(photos[order[row]], sizes[order[row]], int(away[row])) for row in near.tolist()]
            if len(group) > 1:
                groups.append([group[0], *sorted(group[1:], key=lambda copy: copy.distance)])
    return sorted(groups, key=lambda group: (-sum(copy.photo.size for copy in group[1:]), group[0].photo.path))


def size_of(photo: Photo) -> Size:
    """The size of a photo's picture."""
    try:
        return image_size(photo.path)
    except UnreadableImage:
        return 0, 0


def date_of(photo: Photo) -> str:
    """When a photo's file was last changed, in local time as 2024-05-31 17:20; "" where no calendar has it."""
    try:
        return datetime.fromtimestamp(photo.changed_ns // 10**9).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):
        return ""


def described(copy: Copy) -> dict[str, Any]:
    """A copy as plain data."""
    photo, (width, height), distance = copy
    return {
        "id": photo.id, "path": photo.path, "size": photo.size, "width": width, "height": height,
        "date": date_of(photo), "distance": distance,
    }  # fmt: skip


def _mapped(what: str, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    with ThreadPoolExecutor() as pool, progress(what, len(items), "photos") as counter:
        for made in pool.map(function, items):
            yield made
            counter.add(1)


def _csv(groups: Iterable[list[dict[str, Any]]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "best", "path", "size", "width", "height", "date", "distance"])
    for number, group in enumerate(groups, 1):
        for place, copy in enumerate(group):
            writer.writerow([number, int(place == 0), *(copy[key] for key in [*copy][1:])])
    return text.getvalue()


def _sheet(found: dict[str, Any]) -> str:
    """One HTML file with thumbnails, which loads nothing."""
    groups = found["groups"]
    thumbnails = _mapped("drawing", _thumbnail, [copy["path"] for group in groups for copy in group])
    sections = []
    for number, group in enumerate(groups, 1):
        figures = []
        for place, copy in enumerate(group):
            path, name = (escape(printable(text)) for text in (copy["path"], Path(copy["path"]).name))
            near = f"{copy['distance']} bits away" if place else "best copy"
            picture = next(thumbnails)
            picture = picture and f'<img src="data:image/jpeg;base64,{picture}" alt="">'
            figures.append(
                f'<li><a href="{escape(Path(copy["path"]).as_uri())}">{picture}<b>{near}</b></a>'
                f'<strong title="{path}">{name}</strong><span>{told_size(copy)}</span><small>{path}</small></li>'
            )
        sections.append(f"<h2>Group {number}: {len(group)} photos</h2>\n<ul>\n{chr(10).join(figures)}\n</ul>")
    title = f"Near-duplicates of {escape(printable(Path(found['library']).name))}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f'<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n'
        f"<h1>{title}</h1>\n<p>{verdict(found)}</p>\n{chr(10).join(sections)}\n</body>\n</html>\n"
    )


def told_size(copy: dict[str, Any]) -> str:
    """Pixels, bytes and date of a described copy, for a person."""
    size, unit = (copy["size"] / 1e6, "MB") if copy["size"] >= 1e5 else (copy["size"] / 1e3, "kB")
    pixels = f"{copy['width']} x {copy['height']}" if copy["width"] else "unreadable"
    return f"{pixels}, {size:.1f} {unit}, {copy['date']}"


def verdict(found: dict[str, Any]) -> str:
    """How many groups there are, for a person."""
    groups = found["groups"]
    count, spare = sum(map(len, groups)), sum(copy["size"] for group in groups for copy in group[1:])
    missing = f" {found['missing']:,} photos whose files are missing were left out." if found["missing"] else ""
    return (
        f"{len(groups):,} groups of {count:,} photos, each at most {found['radius']} of {found['bits']} bits from the "
        f"best copy of its group: the largest picture, then the largest file. The other copies take "
        f"{spare / 1e6:,.1f} MB.{missing} Nothing was deleted."
    )


def _thumbnail(path: str) -> str:
    """A small JPEG in base64; "" where the file cannot be shown."""
    try:
        image = decode_image(path, path, SIDE)
        return base64.b64encode(jpeg(image, SIDE / min(image.size), quality=75)).decode()
    except UnreadableImage:
        return ""


_CSS = """
:root { color-scheme: light dark; --page: light-dark(#fbfaf7, #121518); --ink: light-dark(#16191d, #eceae4);
  --quiet: light-dark(#5a626c, #a2a9b0); --line: light-dark(#e3e1d9, #2a3036); --accent: light-dark(#0b6b5d, #5fd0ba); }
* { box-sizing: border-box; }
body { max-width: 90rem; margin: 0 auto; padding: clamp(1.2rem, 4vw, 3rem); background: var(--page); color: var(--ink);
  font: 400 1rem/1.5 ui-sans-serif, system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font: 400 clamp(1.5rem, 5vw, 2.25rem)/1.2 Charter, Georgia, serif; }
p { max-width: 44rem; color: var(--quiet); }
h2 { margin: 2rem 0 .8rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: 1rem; font-weight: 600; }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; margin: 0; padding: 0;
  list-style: none; }
li { display: grid; align-content: start; gap: .1rem; content-visibility: auto; contain-intrinsic-size: auto 15rem;
  font-size: .8125rem; }
li a { position: relative; display: block; aspect-ratio: 1; margin-bottom: .3rem; overflow: hidden;
  border-radius: 8px; background: var(--line); }
li img { width: 100%; height: 100%; object-fit: contain; }
li b { position: absolute; top: .4rem; left: .4rem; padding: 0 .5rem; border-radius: 9px;
  background: rgb(15 20 22 / .75); color: #fff; font-size: .6875rem; }
li:first-child b { background: var(--accent); color: var(--page); }
li strong { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-weight: 550; }
li span, li small { color: var(--quiet); }
@media (max-width: 30rem) { ul { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
"""
