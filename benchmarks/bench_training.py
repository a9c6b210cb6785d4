"""The training benchmarks: our loops beside the published ones, on the same images and the same machine.

    python benchmarks/bench.py teacher_pass distill_224 distill_total distill_64 hash_224 --photos FOLDER
    python benchmarks/bench.py beside memory cost_distill

Each side runs in a process of its own (`peer_training.py`, `our_training.py`) and both are timed in turn.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from distilhash.__main__ import ENVIRONMENT
from distilhash.data.cifar10 import load_cifar10
from scaling import line
from sidebyside import Process, Side, Work, compare, keep, machine, pairwise

HERE = Path(__file__).parent
PEER, OURS = str(HERE / "peer_training.py"), str(HERE / "our_training.py")
PHOTOGRAPHS, CLASSES = 640, 10  # files that both sides go through, some of them copies
CIFAR10_IMAGES = 2_000  # that the peer goes through at 224 pixels
PUBLISHED = "published loop: ResNet50 in every step, eager float32, Pillow transforms, Adam"
EPOCHS = 8  # of the whole distillation that is timed: the default
LEAST_MEMORY_MIB = 2048
BURN = "while True: pass"


@contextlib.contextmanager
def class_folders(photos: Path) -> Iterator[tuple[str, str]]:
    """A folder with so many photographs in class folders, and what they are, for the settings of a row."""
    sources = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:PHOTOGRAPHS]
    sizes = []
    with tempfile.TemporaryDirectory(prefix="bench_training_") as place:
        for number in range(PHOTOGRAPHS):
            source = sources[number % len(sources)]
            target = Path(place) / f"class{number % CLASSES}" / f"{number:04d}.jpg"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
            with Image.open(target) as image:
                sizes.append(image.size)
        width, height = (int(side) for side in np.median(sizes, axis=0))
        yield place, f"{len(sources)} JPEG files, median {width} x {height} pixels"


def distill_224(photos: Path) -> None:
    """Distilling ResNet50 into v1 at 224 pixels, the teacher's pass done."""
    with class_folders(photos) as (folder, kind):
        settings = {"images": kind, "batch": 64, "batches_a_run": {"peer": 1, "ours": 2}, "cache": "ready"}
        work = Work("distill_224", PUBLISHED, "images/s", 6, settings)
        against_peer(work, ["distill", folder, "--batches", "1"], ["distill_224", folder, "--steps", "2"])


def distill_total(photos: Path) -> None:
    """A whole distillation of ResNet50 into v1 at 224 pixels: the teacher's one pass, and then every epoch."""
    with class_folders(photos) as (folder, kind):
        settings = {"images": kind, "batch": 64, "epochs": EPOCHS}
        work = Work("distill_total", PUBLISHED, "images/s", 1, settings)
        peer = Process(PEER, "distill", folder, "--batches", "1")
        teacher = Process(OURS, "resnet50_pass", folder, "--steps", "8", **ENVIRONMENT)
        student = Process(OURS, "distill_224", folder, "--steps", "2", **ENVIRONMENT)

        def ours() -> float:  # images/s of all epochs together, with the pass before them
            return EPOCHS / (1 / teacher() + EPOCHS / student())

        try:
            compare(work, peer, ours)
        finally:
            for side in (peer, teacher, student):
                side.close()


def distill_64(photos: Path) -> None:
    """The same blocks at 64 pixels, against the published loop as it is, at 224."""
    settings = {
        "images": "CIFAR-10", "batch": {"peer": 64, "ours": 128}, "batches_a_run": {"peer": 1, "ours": 10},
        "cache": "ready",
        "student": "v1's blocks at 64 pixels with the small stem; the peer's at 224",
    }  # fmt: skip
    work = Work("distill_64", PUBLISHED, "images/s", 40, settings)
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, load_cifar10().images[:CIFAR10_IMAGES])
        file.flush()
        against_peer(work, ["distill", file.name, "--batches", "1"], ["distill_64", "cifar10", "--steps", "10"])


def hash_224(photos: Path) -> None:
    """Fine-tuning v1 with CSQ at 224 pixels."""
    with class_folders(photos) as (folder, kind):
        settings = {"images": kind, "batch": 64, "batches_a_run": {"peer": 1, "ours": 2}, "bits": 64}
        peer = "published loop: CSQ, eager float32, Pillow transforms, RMSprop"
        work = Work("hash_224", peer, "images/s", 2, settings)
        against_peer(work, ["hash", folder, "--batches", "1"], ["hash_224", folder, "--steps", "2"])


def teacher_pass(photos: Path) -> None:
    """The one pass of EfficientNet-Lite0 at 224 pixels that fills the feature cache."""
    with class_folders(photos) as (folder, kind):
        settings = {"images": kind, "images_a_run": {"peer": 64, "ours": 240}}
        work = Work("teacher_pass", "eager float32 loop, contiguous, Pillow transforms", "images/s", 4, settings)
        against_peer(work, ["teacher", folder, "--batches", "1"], ["teacher_pass", folder, "--steps", "30"])


def against_peer(work: Work, peer: list[str], ours: list[str]) -> None:
    """One row: both sides with these arguments."""
    in_turn(work, Process(PEER, *peer), Process(OURS, *ours, **ENVIRONMENT))


def in_turn(work: Work, *sides: Process) -> None:
    """One row of two processes, which end with it."""
    try:
        compare(work, *sides)
    finally:
        for side in sides:
            side.close()


def beside(photos: Path) -> None:
    """Training while another process keeps one core busy, against training alone."""
    arguments = ["distill_64", "cifar10", "--steps", "5"]
    ours, spinning = Process(OURS, *arguments, **ENVIRONMENT), Process(OURS, *arguments)
    busy = subprocess.Popen([sys.executable, "-c", BURN])
    busy.send_signal(signal.SIGSTOP)

    def crowded(side: Side) -> Side:
        def run() -> float:
            busy.send_signal(signal.SIGCONT)
            try:
                return side()
            finally:
                busy.send_signal(signal.SIGSTOP)

        return run

    try:
        default = statistics.median(b / a for a, b in pairwise(spinning, crowded(spinning), pairs=2))
        settings = {"batch": 128, "batches_a_run": 5, "ratio_with_spinning_threads": default}
        # One of two cores is half; the scheduler shares by threads and not by processes, so a little less is noise.
        compare(Work("beside", "the same, alone on the machine", "images/s", 0.45, settings), ours, crowded(ours))
    finally:
        busy.kill()
        for side in (ours, spinning):
            side.close()


def alone(work: str, *arguments: str) -> str:
    """The last line of a work of ours that has no peer."""
    done = subprocess.run([sys.executable, OURS, work, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


def memory(photos: Path) -> None:
    """Peak memory of distilling 60,000 images beyond the pages of the mapped cache."""
    measured = json.loads(alone("memory", "cifar10", "--steps", "40"))
    peak = measured["peak_mib"]
    row = {
        "work": "memory", "peer": "the limit", "peer_rate": LEAST_MEMORY_MIB, "ours_rate": peak, "unit": "MiB",
        "ratio": LEAST_MEMORY_MIB / peak, "least": 1, "pairs": 1,
        "settings": {"machine": machine(), **measured, "student": "v1, 32 pixels"},
    }  # fmt: skip
    keep(row)
    print(f"{'memory':<14} {LEAST_MEMORY_MIB:>10.0f} {peak:>10.0f} MiB        {row['ratio']:>7.2f}x")


def cost_distill(photos: Path) -> None:
    """Seconds of an epoch against the number of images, from a part of each epoch's steps."""
    points = json.loads(alone("cost", "cifar10"))
    sizes, seconds = [size for size, _ in points], [taken for _, taken in points]
    slope, intercept, r_squared = line(sizes, seconds)
    rates = [size / taken for size, taken in points]
    row = {
        "work": "cost_distill", "peer": "the same at the smallest size", "peer_rate": rates[0], "ours_rate": rates[-1],
        "unit": "images", "ratio": rates[-1] / rates[0], "pairs": 1, "sizes": sizes, "seconds": seconds,
        "seconds_for_each": slope, "seconds_for_none": intercept, "r_squared": r_squared,
        "settings": {
            "machine": machine(), "student": "v1 at 32 pixels", "batch": 128,
            "seconds": "of one epoch with what goes before and after it, its steps from every twelfth of them",
        },
    }  # fmt: skip
    keep(row)
    print(f"{'cost_distill':<14} {sizes[0]:>10,} to {sizes[-1]:,} images: R squared of a line {r_squared:.4f}")


WORKS = {
    work.__name__: work
    for work in (teacher_pass, distill_224, distill_total, distill_64, hash_224, beside, memory, cost_distill)
}
