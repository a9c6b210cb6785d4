"""Five hundred bad and hostile files among good photos: each is told in one line, and memory stays under a limit.

    python benchmarks/hostile.py --files 500 --seed 0

The files are made from a seed: cut off, overwritten with noise, of another format than they say, empty, all zero, bombs
above and just below the pixel limit, huge and degenerate sides, floods of metadata, and names that try a terminal.
`distilhash index` goes through all of them with a small untrained hasher, then once more, when it must say the same.
One line on stdout; exit code 1 where a file that must fail is not told by name, a good photo is missing, a run does
not end well, or a process passes the limit of memory.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from distilhash.checkpoint import save_model
from distilhash.data.decode import MAX_PIXELS
from distilhash.models import create_hasher, create_student

LIMIT_MIB = 1024
GOOD = 50
ESCAPE = "\x1b[31m"  # turns a terminal red
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif"}


def main() -> int:
    """Run the proof and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500, help="bad or hostile ones, count (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile_") as place:
        root = Path(place)
        must_fail = make(root / "photos", options.files, options.seed)
        save_hasher(root / "hasher")
        wrong: list[str] = []
        peaks, counts = [], []
        for attempt in ("first", "second"):
            summary, peak = index(root)
            if summary is None:
                wrong.append(f"the {attempt} run failed")
                break
            peaks.append(peak)
            counts.append(summary)
            if peak > LIMIT_MIB:
                wrong.append(f"the {attempt} run took {peak} MiB")
        if len(counts) == 2:
            first, second = counts
            told = {Path(path).name: reason for path, reason in first["failures"]}
            wrong += [f"{name} was not told" for name in sorted(must_fail - set(told))]
            wrong += [f"{name} is good" for name in sorted(told) if name.startswith("good")]
            wrong += [f"{name}: more than a line" for name, reason in told.items() if len(reason.splitlines()) != 1]
            if first["codes"] + first["failed"] != GOOD + options.files:
                wrong.append(f"{first['codes']} codes and {first['failed']} failures of {GOOD + options.files} files")
            if (second["failures"], second["codes"]) != (first["failures"], first["codes"]):
                wrong.append("the second run says otherwise")
            print(f"{len(told)} of {options.files} files refused, the others are sound enough to be shown", end="; ")
    print(f"peak memory {' and '.join(map(str, peaks))} MiB (limit {LIMIT_MIB}); {'; '.join(wrong) or 'nothing wrong'}")
    return 1 if wrong else 0


def save_hasher(place: Path) -> None:
    """An untrained hasher: what is tried is what comes before it."""
    torch.manual_seed(0)
    student = create_student("v1", size=64, stem="small")
    about = {"kind": "hasher", "architecture": student.architecture, "bits": 32}
    save_model(place / "model", create_hasher(student, 32), about)


def index(root: Path) -> tuple[dict[str, object] | None, int]:
    """What `distilhash index` said, and the peak of its resident memory in MiB."""
    command = [sys.executable, "-m", "distilhash", "index", str(root / "photos"), "--hasher", str(root / "hasher"),
               "--index", str(root / "photos.index"), "--json"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
            peak = max([peak, *(int(line.split()[1]) >> 10 for line in lines)])
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    watcher.join()
    if process.returncode not in (0, 1) or not out:
        print(err[-2000:], file=sys.stderr)
        return None, peak
    return json.loads(out), peak


def make(folder: Path, count: int, seed: int) -> set[str]:
    """Good photos and ``count`` others; the names of those that must be refused."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(GOOD):
        (folder / f"good-{number}.jpg").write_bytes(encoded(picture(noise), "JPEG"))
    must_fail = set()
    makers: list[Callable[[random.Random, np.random.Generator], tuple[str, bytes, bool]]] = [
        cut, overwritten, wrong_magic, empty, zeros, bomb_above, bomb_below, huge_sides, flood, odd_name, no_size,
    ]  # fmt: skip
    for number in range(count):
        ending, content, fails = makers[number % len(makers)](draw, noise)
        kind = makers[number % len(makers)].__name__
        name = f"{kind}-{number}{ESCAPE if kind == 'odd_name' else ''}.{ending}"
        (folder / name).write_bytes(content)
        if fails:
            must_fail.add(name)
    return must_fail


def picture(noise: np.random.Generator) -> Image.Image:
    """A small picture that does not compress to nothing."""
    return Image.fromarray(noise.integers(0, 256, (96, 128, 3), np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def cut(draw: random.Random, noise: np.random.Generator) -> tuple[str, bytes, bool]:
    """A file of any format that ends too early."""
    kind = draw.choice(FORMATS)
    content = encoded(picture(noise), kind)
    return ENDINGS[kind], content[: draw.randrange(1, len(content) * 9 // 10)], kind != "GIF"


def overwritten(draw: random.Random, noise: np.random.Generator) -> tuple[str, bytes, bool]:
    """A file in which a stretch is noise; some decoders go on."""
    kind = draw.choice(FORMATS)
    content = bytearray(encoded(picture(noise), kind))
    start = draw.randrange(0, len(content) - 64)
    content[start : start + 64] = draw.randbytes(64)
    return ENDINGS[kind], bytes(content), False


def wrong_magic(draw: random.Random, noise: np.random.Generator) -> tuple[str, bytes, bool]:
    """Something else under the name of an image: programs, archives, scripts, formats that are not allowed."""
    content = draw.choice([b"\x7fELF", b"PK\x03\x04", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg xmlns='x'>", b"#!/bin/sh\n"])
    return draw.choice(list(ENDINGS.values())), content + draw.randbytes(500), True


def empty(draw: random.Random, noise: np.random.Generator) -> tuple[str, bytes, bool]:
    """No byte at all."""
    return draw.choice(list(ENDINGS.values())), b"", True


def zeros(draw: random.Random, noise: np.random.Generator) -> tuple[str, bytes, bool]:
    """Nothing but zero bytes."""
    return draw.choice(list(ENDINGS.values())), bytes(draw.randrange(1, 100_000)), True


def png(width: int, height: int, colour: int, depth: int, body: bytes, *before: bytes) -> bytes:
    """A PNG with these sides and this compressed body."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def compressed_zeros(count: int) -> bytes:
    """So many zero bytes, compressed in pieces."""
    packer = zlib.compressobj(9)
    piece = bytes(1 << 20)
    return b"".join([*(packer.compress(piece) for _ in range(count >> 20)), packer.compress(bytes(count % (1 << 20))),
                     packer.flush()])  # fmt: skip


def bomb_above(draw: random.Random, noise: np.random.Generator) -> tuple[str, bytes, bool]:
    """A few kilobytes that unpack to more pixels than are allowed."""
    width = draw.randrange(9_000, 40_000)
    return "png", png(width, MAX_PIXELS // width + 1, 2, 8, zlib.compress(bytes(1000))), True


def bomb_below(draw: random.Random, noise: np.random.Generator) -> tuple[str, bytes, bool]:
    """The largest image that is allowed, in the modes that take most memory: it must be decoded, and not take it."""
    return "png", largest_png(*draw.choice([(6, 8, 4), (2, 8, 3), (0, 16, 2), (4, 16, 4), (6, 16, 8)])), False


@functools.cache
def largest_png(colour: int, depth: int, pixel_bytes: int) -> bytes:
    """A black square of as many pixels as are allowed; packing it takes a second."""
    side = int(MAX_PIXELS**0.5)
    return png(side, side, colour, depth, compressed_zeros(side * (1 + side * pixel_bytes)))


def huge_sides(draw: random.Random, noise: np.random.Generator) -> tuple[str, bytes, bool]:
    """Sides up to what a header can say."""
    most = 2**31 - 1
    sides = draw.choice([(most, 1), (1, most), (most, most), (2**32 - 1, 2**32 - 1), (65535, 65535)])
    return "png", png(*sides, 2, 8, zlib.compress(b"\0\0\0\0")), True


def no_size(draw: random.Random, noise: np.random.Generator) -> tuple[str, bytes, bool]:
    """No width or no height."""
    return "png", png(*draw.choice([(0, 0), (0, 10), (10, 0)]), 2, 8, zlib.compress(b"")), True


def flood(draw: random.Random, noise: np.random.Generator) -> tuple[str, bytes, bool]:
    """A small image with much metadata: compressed texts that unpack to many megabytes, or a thousand EXIF entries."""
    if draw.random() < 0.5:
        info = PngImagePlugin.PngInfo()
        for number in range(60):
            info.add_text(f"k{number}", "x" * 900_000, zip=True)
        return "png", encoded(picture(noise), "PNG", pnginfo=info), False
    exif = Image.Exif()
    for tag in range(1000, 2000):
        exif[tag] = "x" * 50
    return "jpg", encoded(picture(noise), "JPEG", exif=exif), False


def odd_name(draw: random.Random, noise: np.random.Generator) -> tuple[str, bytes, bool]:
    """A name with an escape sequence, over a file that cannot be read."""
    return "jpg", draw.randbytes(300), True


if __name__ == "__main__":
    sys.exit(main())
