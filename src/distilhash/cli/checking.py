"""The verb that looks before anything is trained: check."""

from __future__ import annotations

import argparse
from typing import Any

from distilhash.cli.flags import Refused, Verbs
from distilhash.errors import DistilhashError


def _declare_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        metavar="IMAGES",
        help='a folder of images, a folder with list files, or "cifar10"; no file is changed',
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _run_check(options: argparse.Namespace) -> Any:
    from distilhash.api import check

    found = check(options.images)
    result = found if options.json else _told(found)
    if found["ready"]:
        return result
    first, *others = found["problems"]
    more = f" (and {len(others)} more, listed above)" if others else ""
    return Refused(result, DistilhashError(f"training could not begin: {first}{more}"))


def _told(found: dict[str, Any]) -> str:
    """The result as text: a table of the parts, and a line for whatever else there is to say."""
    rows = [["", "images", "missing", "unreadable", "without label"]]
    rows += [[part["part"], *(f"{part[name.replace(' ', '_')]:,}" for name in rows[0][1:])] for part in found["parts"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"{found['images']}: {found['kind']}, {found['label_columns']} classes"]
    if found["parts"]:
        lines += ["  ".join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    lines += [f"{name}: {count:,} images" for name, count in found["overlaps"].items() if count]
    lines += [f"missing: {path}" for path in found["missing"]]
    lines += [f"unreadable: {bad['image']} ({bad['reason']})" for bad in found["unreadable"]]
    lines += [f"note: {note}" for note in found["notes"]]
    lines += [f"problem: {problem}" for problem in found["problems"]]
    return "\n".join([*lines, "ready" if found["ready"] else "not ready"])


VERBS: Verbs = {
    "check": ("IMAGES", "count what is there, missing or unreadable before training", _declare_check, _run_check),
}
