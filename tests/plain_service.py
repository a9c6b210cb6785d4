"""A service for tests whose hasher needs no network: the codes are PlainEncoder's idea, of pixels that were framed.

As a module it is the worker that holds the hasher; `started` runs the real verb with it in a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from distilhash.config import InputConfig
from distilhash.data.decode import UnreadableImage, decode_image
from distilhash.data.preprocess import Preprocess
from distilhash.search.pipes import serve_pipe

BITS, SIDE = 64, 8
INPUT = InputConfig(size=SIDE, framing="pad")
RUN = """
import os, sys
from distilhash.search import decoder, serving
serving.CODER, serving.DECODER = "plain_service", os.environ.get("DECODER", serving.DECODER)
from distilhash import cli
sys.exit(cli.main(["serve", *sys.argv[1:]]))
"""


class Thresholds:
    """An encoder of 64 bits: which pixels of the 8 x 8 grey image are lighter than its mean."""

    num_bits, fingerprint = BITS, "thresholds"

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def encode(self, paths: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
        from distilhash.search.encoder import Encoded

        packed, failures, preprocess = np.zeros((len(paths), BITS // 8), np.uint8), {}, Preprocess(INPUT)
        for position, path in enumerate(paths):
            try:
                framed = preprocess.framed([decode_image(Path(path), path, preprocess.least_side)])
                packed[position] = code_of(framed)
            except UnreadableImage as error:
                failures[position] = error.reason
        return Encoded(packed, failures)


def code_of(framed: np.ndarray) -> np.ndarray:
    grey = framed.reshape(SIDE * SIDE, 3).astype(np.int64).sum(axis=1)
    return np.packbits(grey * len(grey) > grey.sum())


@contextlib.contextmanager
def started(index: Path, *settings: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a running service, and its process."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(index), "--port", "0", *settings],
        env=os.environ | {"PYTHONPATH": paths, **environment}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("serving "):
                yield line.split()[1].rstrip("/"), process
                break
        else:
            raise AssertionError("it did not begin")
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


def main() -> None:
    greeting = {"num_bits": BITS, "fingerprint": "thresholds", "input": dataclasses.asdict(INPUT)}
    serve_pipe(
        lambda: (json.dumps(greeting).encode(), lambda message: code_of(np.frombuffer(message, np.uint8)).tobytes())
    )


if __name__ == "__main__":
    main()
