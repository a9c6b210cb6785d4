"""All side-by-side timings, or those that are named, in one table; kept in benchmarks/results.json.

    python benchmarks/bench.py                                     # everything, with photographs made up on the spot
    python benchmarks/bench.py encode_224 map --photos FOLDER      # two works, on one's own JPEG files

A work lives in the WORKS of a bench_*.py beside this file: a function of the folder of photographs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sidebyside import ready_environment

HERE = Path(__file__).parent
MODULES = sorted(path.stem for path in HERE.glob("bench_*.py"))


def main() -> int:
    """Run the works and return the exit code: 0, whether or not promises hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a work; all of them if none is named")
    parser.add_argument("--photos", type=Path, help="a folder of JPEG photographs")
    options = parser.parse_args()
    known = works()
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no such work: {', '.join(unknown)}; there are {', '.join(known)}")
    with tempfile.TemporaryDirectory(prefix="photos_") as made:
        photos = options.photos
        if photos is None:
            photos = importlib.import_module("bench_encoding").generate_photos(Path(made))
        print(f"{'work':<14} {'peer':>10} {'ours':>10} {'':<10} {'ratio':>8}")
        for name in options.names or known:
            began = time.monotonic()
            known[name](photos)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return 0


def works() -> dict[str, Callable[[Path], object]]:
    """Every work by its name."""
    found: dict[str, Callable[[Path], object]] = {}
    for module in MODULES:
        found |= getattr(importlib.import_module(module), "WORKS", {})
    return found


if __name__ == "__main__":
    ready_environment()
    sys.exit(main())
