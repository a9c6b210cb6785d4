"""Our side of the training benchmarks: the real loops of distilhash, let go for a few steps at a time.

    python benchmarks/our_training.py distill_224|hash_224|teacher_pass|resnet50_pass PHOTOS --steps 2
    python benchmarks/our_training.py distill_64 CIFAR10 --steps 10
    python benchmarks/our_training.py memory|cost CIFAR10

Nothing is copied from the loops: they run as they are, and only the function that hands them their batches waits for a
line "go" (`sidebyside.paced`). The teacher's cache is a memory-mapped file of random features where the teacher's pass
is not what is timed; speed does not depend on its numbers. Rates go to stdout, one for each line on stdin.

"memory" and "cost" run on their own: distillation of 32-pixel images, with a part of the steps of its epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.config import DistillConfig, HashConfig, InputConfig, StudentConfig, as_dict
from distilhash.data import prefetch as pipeline
from distilhash.data.cifar10 import load_cifar10
from distilhash.data.loading import open_readable
from distilhash.data.prefetch import prefetch
from distilhash.data.sources import ImageSource
from distilhash.device import current
from distilhash.models import new_hasher, new_student
from distilhash.models.teacher import TEACHERS, Teacher, rebuild_teacher
from distilhash.training import distill, teacher_features
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory
from sidebyside import paced

ENDLESS = 10_000  # epochs; whoever gives the pace ends the run
CIFAR10_IMAGES = 10_000  # of an epoch at 64 pixels
SHARE = 12  # "cost" does one in so many steps of its epoch
SMALL = StudentConfig(size=32, stem="small", crop_mode="pad", margin=0.1)


def random_features(place: Path, count: int, dim: int) -> np.ndarray:
    """A cache (1, count, dim) as the teacher's pass leaves it, memory-mapped."""
    file = place / "features.npy"
    features = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(1, count, dim))
    rng = np.random.default_rng(0)
    for start in range(0, count, 4096):
        block = features[0, start : start + 4096]
        block[:] = rng.standard_normal(block.shape, np.float32).clip(0)
    features.flush()
    del features
    return np.load(file, mmap_mode="r")


def random_teacher(name: str) -> Teacher:
    """A teacher with fresh weights."""
    recipe = TEACHERS[name]
    return rebuild_teacher({"name": name, "trainable": False, "input": as_dict(recipe.input)})


def run_distill(
    place: Path,
    images: ImageSource,
    count: int,
    student: StudentConfig,
    config: DistillConfig,
    feed: Callable[..., Any],
) -> float:
    """The real `distill` on ``count`` images, its cache ready, its batches handed over by ``feed``; its seconds."""
    teacher = random_teacher("torchvision/resnet50")
    features = random_features(place, count, teacher.feature_dim)
    distill.compute_teacher_features = lambda *arguments, **options: features
    distill.prefetch = feed
    run = RunDirectory(place / "run", {}, overwrite=True)
    network = new_student(student, 0)
    began = time.perf_counter()
    distill.distill(images, np.arange(count), teacher, network, config, run)
    return time.perf_counter() - began


def distill_224(place: Path, where: str, steps: int) -> None:
    images = open_readable(where, labelled=None)
    config = DistillConfig(epochs=ENDLESS, batch_size=64, validation_size=11)
    run_distill(place, images, len(images), StudentConfig(size=224), config, paced(steps * config.batch_size, steps))


def distill_64(place: Path, where: str, steps: int) -> None:
    config, student = DistillConfig(epochs=ENDLESS), dataclasses.replace(SMALL, size=64)
    run_distill(place, load_cifar10(), CIFAR10_IMAGES, student, config, paced(steps * config.batch_size, steps))


def hash_224(place: Path, where: str, steps: int) -> None:
    images = open_readable(where, labelled=True)
    config = HashConfig(epochs=ENDLESS, batch_size=64, bits=64)
    hashing.prefetch = paced(steps * config.batch_size, steps)
    hasher = new_hasher(new_student(StudentConfig(size=224), 0), config)
    run = RunDirectory(place / "run", {})
    hashing.train_hasher(images, np.arange(len(images)), hasher, config, run)


def teacher_pass(place: Path, where: str, steps: int, name: str = "pip/efficientnet_lite0") -> None:
    images = open_readable(where, labelled=None)
    teacher = random_teacher(name)
    pipeline.prefetch = paced(steps * teacher_features._batch(teacher.input, current()), steps)
    views = ENDLESS // len(images)  # more batches than will be asked for
    teacher_features.compute_teacher_features(
        images, np.arange(len(images)), teacher, place / "cache", crop_mode=InputConfig(), views=views
    )


def resnet50_pass(place: Path, where: str, steps: int) -> None:
    teacher_pass(place, where, steps, "torchvision/resnet50")


def memory(place: Path, where: str, steps: int) -> None:
    """Peak resident set of distilling 60,000 images, beyond the pages of the mapped cache; MiB, to stdout as JSON."""
    images = load_cifar10()
    resident = Resident("features.npy")
    config = DistillConfig(epochs=1, checkpoint_seconds=0)  # the state is saved at every step

    def some(load: Callable[[int], Any], keys: range, **options: Any) -> Iterator[Any]:
        return itertools.islice(prefetch(load, keys, **options), steps)

    run_distill(place, images, len(images), SMALL, config, some)
    print(json.dumps({"peak_mib": resident.peak / 1024, "images": len(images), "steps": steps}))


class Resident:
    """Watches, from a thread, how much memory the process holds beyond one mapped file; KiB."""

    def __init__(self, file: str) -> None:
        self.peak = 0
        self._file = file
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            total = mapped = 0
            inside = False
            for line in Path("/proc/self/smaps").read_text().splitlines():
                if "-" in line.split(" ", 1)[0]:
                    inside = line.endswith(self._file)
                elif line.startswith("Rss:"):
                    size = int(line.split()[1])
                    total, mapped = total + size, mapped + size * inside
            self.peak = max(self.peak, total - mapped)
            time.sleep(0.02)


def cost(place: Path, where: str, steps: int) -> None:
    """Seconds of an epoch of distillation for 10,000 to 60,000 images; to stdout as JSON [[images, seconds], ...]."""
    images, points = load_cifar10(), []
    for count in range(10_000, len(images) + 1, 10_000):
        config = DistillConfig(epochs=1)
        part = round((count - config.validation_size) / config.batch_size / SHARE)
        loop = 0.0

        def some(load: Callable[[int], Any], keys: range, part: int = part, **options: Any) -> Iterator[Any]:
            nonlocal loop
            began = time.perf_counter()
            yield from prefetch(load, keys[:part], **options)
            loop = time.perf_counter() - began

        rest = run_distill(place, images, count, SMALL, config, some) - loop
        whole = loop * ((count - config.validation_size) // config.batch_size) / part
        points.append([count, rest + whole])
        print(f"{count:,} images: {whole:.1f} s of steps, {rest:.1f} s beside them", file=sys.stderr)
    print(json.dumps(points))


WORKS = {work.__name__: work for work in (distill_224, distill_64, hash_224, teacher_pass, resnet50_pass, memory, cost)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("images", help="a folder of JPEG files in class folders, or cifar10")
    parser.add_argument("--steps", type=int, default=2, help="of one run, count")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="our_training_") as place:
        WORKS[options.work](Path(place), options.images, options.steps)


if __name__ == "__main__":
    main()
