"""Proof that a killed index loses nothing: SIGKILL at random moments, and what was said to be kept is there.

    python benchmarks/kill_index.py --kills 20 --seed 0

Two kinds of process are killed in turn. One brings an index up to date with a folder of small pictures in which files
were added, edited, renamed, deleted and broken; its progress says what is kept. In some rounds it also prunes, the
whole folder was moved, or the index is built again with another hasher, before whose end it must be as it was. The
other adds and removes blocks of codes, and prints each block when it is done. After a kill the index must open, every
code must be that of its file or id, and nothing that was said to be kept may be missing. Then the same work goes on to
its end, which must be equal, row for row and id for id, to that of a copy of the index that nobody killed.

The pictures are encoded by a hash of their pixels that takes a few milliseconds: what is tried is the store and not a
network. One line on stdout, progress on stderr; exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from distilhash.codes import Bytes
from distilhash.data.decode import decode_image
from distilhash.photos import update as photos
from distilhash.photos.catalogue import PhotoStore
from distilhash.photos.encoder import PhotoFiles
from distilhash.progress import Counter
from distilhash.retrieval import Index

PICTURES, CHANGES = 120, 60  # in the folder at first; made to it before each kill
BLOCKS, BLOCK = 40, 500  # of codes that are added; a fifth of each is removed again
ENCODING = 0.002  # seconds a picture
photos.LARGEST_BATCH = 8  # pictures a commit, so that a kill has many places to hit


class HashEncoder:
    """Codes of 32 bits from a hash of the pixels and of a fingerprint."""

    num_bits, path = 32, "/none"

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def codes(self, files: PhotoFiles) -> Bytes:
        time.sleep(ENCODING * len(files))
        found = [code_of(image, self.fingerprint) for image in files.read(range(len(files)))]
        return np.array(found, np.uint8).reshape(-1, 4)


def code_of(image: Image.Image, fingerprint: str) -> Bytes:
    """The code that a picture must have."""
    return np.frombuffer(hashlib.sha256(fingerprint.encode() + image.tobytes()).digest()[:4], np.uint8)


def main() -> int:
    """Run the proof and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how often a process is killed, count")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the changes")
    options = parser.parse_args()
    began, draw = time.monotonic(), random.Random(options.seed)
    wrong: list[str] = []
    places: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="kill_index_") as place:
        root = Path(place)
        folder = Pictures(root / "photos", draw)
        rounds = 0
        while places.total() < options.kills:
            kind = photo_round if rounds % 2 == 0 else code_round
            found, hit = kind(root, folder, draw)
            wrong += [f"round {rounds}: {what}" for what in found]
            if hit:
                places[hit] += 1
                print(f"round {rounds}: killed {hit}", file=sys.stderr, flush=True)
            rounds += 1
    verdict = "DIFFERENT: " + "; ".join(wrong) if wrong else "nothing lost, and equal in the end"
    where = ", ".join(f"{count} {name}" for name, count in places.most_common())
    print(f"{verdict}: {places.total()} kills ({where}), {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


class Pictures:
    """A folder that changes."""

    def __init__(self, path: Path, draw: random.Random) -> None:
        self.path, self._draw, self._made = path, draw, 0
        self.hasher = "hash 0"  # that encodes them
        for _ in range(PICTURES):
            self._add()

    def change(self) -> None:
        """Many random changes."""
        for _ in range(CHANGES):
            self._draw.choice([self._add, self._add, self._edit, self._rename, self._break, self._delete])()

    def move(self) -> None:
        """The whole folder to another name."""
        self._made += 1
        self.path = self.path.rename(self.path.with_name(f"photos {self._made}"))

    def change_hasher(self) -> None:
        """Another one from now on."""
        self._made += 1
        self.hasher = f"hash {self._made}"

    def files(self) -> list[Path]:
        """The files that are there, in order."""
        return sorted(path for path in self.path.rglob("*") if path.is_file())

    def _write(self, path: Path, content: bytes | None = None) -> None:
        self._made += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            pixels = np.random.default_rng(self._made).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(path)
        else:
            path.write_bytes(content)
        os.utime(path, ns=(0, self._made * 1_000_000_000))

    def _add(self) -> None:
        self._write(self.path / self._draw.choice("abc") / f"{self._made}.png")

    def _edit(self) -> None:
        self._write(self._draw.choice(self.files()))

    def _break(self) -> None:
        self._write(self._draw.choice(self.files()), b"broken %d" % self._made)

    def _delete(self) -> None:
        self._draw.choice(self.files()).unlink()

    def _rename(self) -> None:
        self._made += 1
        self._draw.choice(self.files()).rename(self.path / self._draw.choice("abc") / f"{self._made} moved.png")


def photo_round(root: Path, folder: Pictures, draw: random.Random) -> tuple[list[str], str]:
    """Change the folder, kill what brings the index up to date; what is wrong, and where the kill hit."""
    whole, killed = root / "whole", root / "killed"
    folder.change()
    how = draw.choice(["", "", "with --prune", "of a moved folder", "with --rebuild"])
    if how == "of a moved folder":
        folder.move()
    elif how == "with --rebuild":
        folder.change_hasher()
    prune = how == "with --prune"
    copy_index(whole, killed)
    seconds, _ = finished(lambda say: update(whole, folder, prune, say))
    before, earlier = settled(killed, folder)[0], rows(killed)
    said, hit = killed_after(lambda say: update(killed, folder, prune, say), draw.uniform(0, seconds))
    kept, wrong = settled(killed, folder)
    promised = int(said[-1]) if said else 0
    if how == "with --rebuild":
        promised = 0
        if rows(killed) not in (earlier, rows(whole)):
            wrong.append("a rebuild that was killed changed the index")
    if kept < before + promised:
        wrong.append(f"{promised} pictures were said to be kept, {kept - before} are")
    finished(lambda say: update(killed, folder, prune, say))
    if rows(whole) != rows(killed):
        wrong.append("the photos differ in the end")
    wrong += settled(killed, folder)[1]
    moment = f"{'after' if said else 'before'} the first commit of photos"
    return wrong, " ".join(filter(None, [moment, how])) if hit else ""


def code_round(root: Path, folder: Pictures, draw: random.Random) -> tuple[list[str], str]:
    """Kill what adds and removes blocks of codes; what is wrong, and where the kill hit."""
    whole, killed = root / "whole codes", root / "killed codes"
    for path in (whole, killed):
        path.unlink(missing_ok=True)
    seconds, _ = finished(lambda say: change_codes(whole, 0, say))
    said, hit = killed_after(lambda say: change_codes(killed, 0, say), draw.uniform(0, seconds))
    wrong = []
    promised = int(said[-1]) if said else 0
    with Index.open(killed) as index:
        kept = set(index.ids.tolist())
        if not {number for step in range(promised) for number in final_ids(step)} <= kept:
            wrong.append(f"of {promised} steps that were said to be kept codes are missing")
        if kept and not np.array_equal(index.codes_of(sorted(kept)), codes_of(sorted(kept))):
            wrong.append("a code is another one's")
        next_step = max(kept, default=-1) // BLOCK
        index_has_half = bool(kept) and not kept.isdisjoint(removed_ids(next_step))
    resumed = next_step if index_has_half else next_step + 1
    finished(lambda say: change_codes(killed, resumed, say, half=index_has_half))
    with Index.open(whole) as one, Index.open(killed) as other:
        if not (np.array_equal(one.ids, other.ids) and np.array_equal(one.codes_of(one.ids), other.codes_of(one.ids))):
            wrong.append("the codes differ in the end")
    return wrong, "while codes were changed" if hit else ""


def update(index: Path, folder: Pictures, prune: bool, say: Callable[[str], None]) -> None:
    """What is killed: an update of the photos, which says after each commit how many are kept."""

    class Told(Counter):
        def add(self, count: int = 1, **facts: float) -> None:
            super().add(count, **facts)
            say(str(self.done))

    photos.progress = lambda *about: contextlib.nullcontext(Told(*about, done=0, bar=None))
    with contextlib.closing(PhotoStore(index)) as store:
        photos.update(store, [folder.path], HashEncoder(folder.hasher), prune=prune, rebuild=True)


def change_codes(index: Path, first: int, say: Callable[[str], None], half: bool = False) -> None:
    """What is killed: blocks added, and a fifth of each removed. ``half``: the first one was added already."""
    with Index.open(index, num_bits=32) as opened:
        for step in range(first, BLOCKS):
            ids = np.arange(step * BLOCK, (step + 1) * BLOCK)
            if not (half and step == first):
                opened.add(ids, codes_of(ids))
            opened.remove(removed_ids(step))
            say(str(step + 1))


def removed_ids(step: int) -> list[int]:
    """The ids of a block that are removed again; never its last, by which a block is known to be there."""
    return list(range(step * BLOCK, (step + 1) * BLOCK, 5))


def final_ids(step: int) -> set[int]:
    """The ids of a block that stay."""
    return set(range(step * BLOCK, (step + 1) * BLOCK)) - set(removed_ids(step))


def codes_of(ids: Sequence[int] | np.ndarray) -> Bytes:
    """The packed code of each id."""
    return (np.asarray(ids, np.uint32) * np.uint32(2654435761))[:, None].view(np.uint8)


def settled(index: Path, folder: Pictures) -> tuple[int, list[str]]:
    """How many files the index knows as they are, and what is wrong with it."""
    store = PhotoStore(index)
    ids, codes = store.codes()
    known, hasher = store.photos(), store.about().get("encoder", "")
    store.close()
    wrong = []
    if ids.tolist() != [photo.id for photo in known if photo.failure is None]:
        wrong.append("codes and photos are not of the same ids")
    code_by_id = dict(zip(ids.tolist(), codes, strict=True))
    by_path = {photo.path: photo for photo in known}
    count = 0
    for file in folder.files():
        photo, status = by_path.get(str(file)), file.stat()
        if photo is None or (photo.size, photo.changed_ns) != (status.st_size, status.st_mtime_ns):
            continue
        count += 1
        if photo.failure is None and not np.array_equal(
            code_by_id.get(photo.id), code_of(decode_image(Path(photo.path), photo.path), hasher)
        ):
            wrong.append(f"the code of {photo.path} is another one's")
    return count, wrong


def rows(index: Path) -> tuple[object, ...]:
    """All that an index says of photos."""
    store = PhotoStore(index)
    ids, codes = store.codes()
    found = store.photos(), ids.tolist(), codes.tolist(), store.about(), store.roots()
    store.close()
    return found


def copy_index(source: Path, target: Path) -> None:
    """An index as a file of its own; its writer has closed it, so there is no log beside it."""
    target.unlink(missing_ok=True)
    if source.exists():
        shutil.copy(source, target)


def started(work: Callable[[Callable[[str], None]], None]) -> tuple[int, int]:
    """The work in a process of its own: its id, and where its lines can be read."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(reading)
            work(lambda text: void(os.write(writing, f"{text}\n".encode())))
            code = 0
        except BaseException:
            traceback.print_exc()  # else nobody would hear of it
        finally:
            os._exit(code)
    os.close(writing)
    return process, reading


def void(_: object) -> None:
    """Nothing."""


def finished(work: Callable[[Callable[[str], None]], None]) -> tuple[float, list[str]]:
    """Run the work to its good end; its seconds and its lines."""
    began = time.monotonic()
    process, reading = started(work)
    lines = read_all(reading)
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0:
        sys.exit("the work failed where nobody killed it")
    return time.monotonic() - began, lines


def killed_after(work: Callable[[Callable[[str], None]], None], seconds: float) -> tuple[list[str], bool]:
    """Kill the work after so long; its lines until then, and whether it was still running."""
    process, reading = started(work)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    lines = read_all(reading)
    return lines, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def read_all(reading: int) -> list[str]:
    """Every whole line until the other end is closed."""
    with os.fdopen(reading, "rb") as file:
        return [line.decode().rstrip("\n") for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]


if __name__ == "__main__":
    sys.exit(main())
