"""A service for tests whose hasher needs no network: a code says which pixels of the cropped grey image are
lighter than its mean.

As a module it is the encode worker; `started` runs the real command with it in a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from distilhash.config import InputConfig
from distilhash.data.decode import UnreadableImage, decode_image
from distilhash.data.transforms import Preprocess
from distilhash.photos.catalogue import Photo, PhotoStore
from distilhash.server.workers import run_worker

BITS, SIDE = 64, 8
INPUT = InputConfig(size=SIDE, crop_mode="pad")
RUN = """
import sys
from distilhash.server import serve
serve.ENCODER = ("plain_service",)
from distilhash import cli
sys.exit(cli.main(["serve", *sys.argv[1:]]))
"""


def make_index(index: Path, root: Path, paths: Iterable[Path] | None = None) -> dict[str, int]:
    """Write an index of the photos below a folder (or of these paths) by hand; the id of each, by its name."""
    found = sorted(path for path in root.rglob("*") if path.is_file()) if paths is None else list(paths)
    store, preprocess, ids = PhotoStore(index), Preprocess(INPUT), {}
    with store.writing():
        store.describe(num_bits=str(BITS), encoder="thresholds", encoder_path=str(root))
        store.put_roots([str(root)])
        for identity, path in enumerate(found, 1):
            try:
                code = code_of(preprocess.crop([decode_image(path, path.name)]))
            except UnreadableImage:  # as from an index that lies
                code = np.zeros(BITS // 8, np.uint8)
            store.put_photos([Photo(identity, str(path), 1, 2, b"content", None)])
            store.append(np.array([identity]), code[None])
            ids[path.name] = identity
    store.close()
    return ids


def code_of(pixels: np.ndarray) -> np.ndarray:
    grey = pixels.reshape(SIDE * SIDE, 3).astype(np.int64).sum(axis=1)
    return np.packbits(grey * len(grey) > grey.sum())


@contextlib.contextmanager
def started(
    index: Path, *settings: str, run: str = RUN, python: str | Path = sys.executable
) -> Iterator[tuple[str, subprocess.Popen[str]]]:  # fmt: skip
    """The first address of a running service, and its process."""
    with running(index, *settings, run=run, python=python) as (addresses, process):
        yield addresses[0], process


@contextlib.contextmanager
def running(
    index: Path, *settings: str, run: str = RUN, python: str | Path = sys.executable
) -> Iterator[tuple[list[str], subprocess.Popen[str]]]:  # fmt: skip
    """The addresses of a running service, and its process."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [str(python), "-c", run, str(index), "--port", "0", *settings],
        env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if line.startswith("serving "):
                yield [word.rstrip("/") for word in line.split() if word.startswith("http")], process
                break
        else:
            raise AssertionError(f"it did not begin: {''.join(said)}")
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


def main() -> None:
    greeting = {"fingerprint": "thresholds", "input": dataclasses.asdict(INPUT)}
    run_worker(
        lambda: (json.dumps(greeting).encode(), lambda message: code_of(np.frombuffer(message, np.uint8)).tobytes())
    )


if __name__ == "__main__":
    main()
