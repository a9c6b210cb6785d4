"""The verbs over a folder of photographs: index, search, code."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from distilhash.cli.flags import Verbs, add_hasher_of_index, to_stderr

_SHOWN = 3  # failures of each kind, in one line


def _declare_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a folder of photos, with all folders below it")
    parser.add_argument(
        "--hasher", metavar="DIR",
        help="run directory or model of a hasher, or an exported one; left out: the index's own, or a new one of a "
        "frozen teacher",
    )  # fmt: skip
    parser.add_argument(
        "--index", type=Path, default=Path("photos.index"), metavar="FILE",
        help="the index: made, or brought up to date (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--int8", action="store_true", help="the int8 model of an exported hasher; the index remembers it"
    )
    parser.add_argument("--hidden", action="store_true", help="also folders and files that programs hide")
    parser.add_argument("--rebuild", action="store_true", help="encode everything again where the hasher is another")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _run_index(options: argparse.Namespace) -> Any:
    from distilhash.api import index

    done = index(
        options.folders, options.index, options.hasher, int8=options.int8, hidden=options.hidden,
        rebuild=options.rebuild,
    )  # fmt: skip
    for key, what in (("unreadable", "cannot be listed"), ("failures", "cannot be read")):
        rows = done[key] if options.json else done.pop(key)
        if rows:
            first = "; ".join(f"{shown(path)} ({reason})" for path, reason in rows[:_SHOWN])
            to_stderr(f"{len(rows):,} {what}: {first}{'; ...' if len(rows) > _SHOWN else ''}")
    return done


def _declare_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="INDEX", help="what distilhash index wrote")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files to look for")
    parser.add_argument(
        "--id", type=int, action="append", default=[], metavar="N", help="look for an indexed photo; may be repeated"
    )
    parser.add_argument(
        "--top", type=int, metavar="INT", help="most hits for a query, count; left out: 10, or all within --radius"
    )
    parser.add_argument("--radius", type=int, metavar="INT", help="only hits so near, bits; left out: however far")
    parser.add_argument(
        "--group-duplicates", type=int, nargs="?", const=2, metavar="INT",
        help="list hits at most so far from a nearer hit below it, bits (2 where no number is given); left out: apart",
    )  # fmt: skip
    add_hasher_of_index(parser)


def _run_search(options: argparse.Namespace) -> Any:
    from distilhash.api import search

    found = search(
        options.index, options.images, ids=options.id, top=options.top, radius=options.radius,
        group_duplicates=options.group_duplicates, hasher=options.hasher, int8=options.int8,
    )  # fmt: skip
    if options.json:
        return found
    lines = []
    for answer in found:
        lines.append(f"{shown(answer['query'])}: {len(answer['hits'])} hits")
        for hit in answer["hits"]:
            lines.append(f"{hit['distance']:>6}  {hit['id']:>8}  {shown(hit['path'])}".rstrip())
            lines += [
                f"{double['distance']:>6}  {double['id']:>8}    like it: {shown(double['path'])}"
                for double in hit["duplicates"]
            ]
    return "\n".join(lines)


def _declare_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hasher", metavar="HASHER", help="run directory or model of a hasher, or an exported one")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--int8", action="store_true", help="the int8 model of an exported hasher")


def _run_code(options: argparse.Namespace) -> Any:
    from distilhash.api import code

    found = code(options.hasher, options.images, int8=options.int8)
    return found if options.json else "\n".join(f"{row['code']}  {shown(row['image'])}" for row in found)


def shown(path: str) -> str:
    """A path that any terminal can print: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


VERBS: Verbs = {
    "index": (
        "FOLDER...", "bring an index up to date with folders of photos", _declare_index, _run_index
    ),
    "search": (
        "INDEX [IMAGE...]", "find the photos of an index that are like an image", _declare_search, _run_search
    ),
    "code": ("HASHER IMAGE...", "print the code of images", _declare_code, _run_code),
}  # fmt: skip
