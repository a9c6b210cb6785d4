"""Proof that a killed run loses nothing: SIGKILL at random moments, --resume, and the same weights to the byte.

    python benchmarks/kill_resume.py --kills 20 --seed 0

`distilhash distill` and `distilhash hash` are run on 600 CIFAR-10 images, once in peace and once killed over and over:
before the run directory is whole, in the teacher's pass, in training, while a state is being written. Each time the
same command with --resume goes on. What must be equal in the end: every file of the run directories but the log and
the provenance; so the weights, the metrics, and that nothing half-written is left. Distillation saves its state after
every step, hashing every 0.2 seconds. Stages that end before their kills are used up are followed by another run.

One line on stdout, progress on stderr; exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from distilhash.data.cifar10 import load_cifar10

IMAGES_A_CLASS = 60
STAGES = ("distill", "hash")
MOST_CHANGES, LONGEST_WAIT = 24, 0.2  # of files that are let pass before a kill, count; after the last of them, seconds
TOLD = ("train.log", "provenance.json")  # they tell of the time, not of the result
STUDENT = ["--student-size", "32", "--student-stem", "small", "--student-crop-mode", "pad", "--student-margin", "0.1"]
DISTILL = [
    *STUDENT, "--teacher-size", "64", "--views", "2", "--epochs", "2", "--batch-size", "64", "--validation-size", "60",
    "--precision", "float32", "--checkpoint-seconds", "0",
]  # fmt: skip
HASH = ["--epochs", "2", "--batch-size", "64", "--precision", "float32", "--checkpoint-seconds", "0.2"]


def main() -> int:
    """Run the proof and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how often a process is killed, count")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill_resume_") as place:
        root = Path(place)
        write_images(root / "images")
        draw = random.Random(options.seed)
        whole = Rounds(root, "whole", draw)
        for stage in STAGES:
            whole.finish(stage, whole.start(stage))
        places: Counter[str] = Counter()
        different: list[str] = []
        rounds = 0
        while places.total() < options.kills:
            rounds += 1
            killed = Rounds(root, f"round {rounds}", draw)
            left = options.kills - places.total()
            share = round(left * 0.6) if left > 1 else left  # distillation has more places to be killed in
            places += killed.run_and_kill("distill", share)
            places += killed.run_and_kill("hash", options.kills - places.total())
            different += [
                f"{stage}/{name}" for stage in STAGES for name in differing(whole.path(stage), killed.path(stage))
            ]
    verdict = "DIFFERENT: " + ", ".join(sorted(set(different))) if different else "equal to the byte"
    where = ", ".join(f"{count} {name}" for name, count in places.most_common())
    runs = "one run" if rounds == 1 else f"{rounds} runs"
    seconds = time.monotonic() - began
    print(f"{verdict}: {places.total()} kills in {runs} of both stages ({where}), {seconds:.0f} s")
    return 1 if different else 0


def write_images(folder: Path) -> None:
    """The first images of every class as PNG files in class folders."""
    cifar10 = load_cifar10()
    labels = np.asarray(cifar10.labels)
    for number, name in enumerate(cifar10.class_names):
        (folder / name).mkdir(parents=True)
        chosen = np.flatnonzero(labels == number)[:IMAGES_A_CLASS]
        for index, pixels in zip(chosen, cifar10.read(chosen), strict=True):
            Image.fromarray(pixels).save(folder / name / f"{index:05d}.png")


class Rounds:
    """Both stages in one folder, each in a process that may be killed."""

    def __init__(self, root: Path, name: str, draw: random.Random) -> None:
        self.root, self.name, self.draw = root, name, draw

    def path(self, stage: str) -> Path:
        """The stage's run directory."""
        return self.root / self.name / stage

    def start(self, stage: str) -> subprocess.Popen[bytes]:
        """The stage's command: it begins, or goes on."""
        settings = DISTILL if stage == "distill" else ["--backbone", str(self.path("distill")), *HASH]
        images, output = str(self.root / "images"), str(self.path(stage))
        return subprocess.Popen(
            [sys.executable, "-m", "distilhash", stage, images, "--output", output, "--resume", "--quiet", *settings],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def run_and_kill(self, stage: str, kills: int) -> Counter[str]:
        """Run the stage to its end, killed up to ``kills`` times on the way; where the kills hit."""
        places: Counter[str] = Counter()
        while places.total() < kills:
            process = self.start(stage)
            # Not after a time alone: a busy machine would let every kill hit the start.
            if places.total() == 0:  # as soon as there is anything at all
                wait_for_changes(self.path(stage), 1, process)
            elif places.total() == 1 and stage == "distill":  # in the midst of the teacher's pass
                while committed(self.path(stage))[0] == 0 and process.poll() is None:
                    time.sleep(0.001)
            else:
                wait_for_changes(self.path(stage), self.draw.randint(1, MOST_CHANGES), process)
                sleep(self.draw.uniform(0, LONGEST_WAIT), process)
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                break  # it was done, well or badly: the next start will tell
            place = place_of(self.path(stage))
            places[place.split(",")[0]] += 1
            tell(f"{self.name}: {stage} killed {place}")
        self.finish(stage, self.start(stage))
        return places

    def finish(self, stage: str, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end, which must be a good one."""
        if process.wait() != 0:
            sys.exit(f"{self.name}: {stage} failed, exit code {process.returncode}")


def place_of(run: Path) -> str:
    """What the process was about when it was killed, as its files show."""
    if not (run / "config.json").exists():
        return "before the run had begun"
    if (run / "model" / "model.safetensors").exists():
        return "after the model was written"
    if any(run.rglob(".*.tmp")):
        return f"while writing, {next(run.rglob('.*.tmp')).name.split('.')[1]}"
    if (run / "checkpoints").exists():
        return f"in training, {(run / 'metrics.jsonl').read_text().count('epoch')} lines of metrics"
    rows, total = committed(run)
    if rows < total:
        return f"in the teacher's pass, {rows} of {total} rows committed"
    return "before the first state"


def committed(run: Path) -> tuple[int, int]:
    """Rows of teacher features that are safely on disk, and all."""
    cache = run / "teacher_features" / "cache.json"
    if not cache.exists():
        return 0, 0
    held = json.loads(cache.read_text())
    return held["rows"], held["shape"][0] * held["shape"][1]


def differing(one: Path, other: Path) -> list[str]:
    """Names of the files that are not in both run directories, or not the same."""
    contents = [
        {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in TOLD}
        for run in (one, other)
    ]
    return [name for name in contents[0].keys() | contents[1].keys() if contents[0].get(name) != contents[1].get(name)]


def wait_for_changes(run: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many changes of the run's files have been seen, or the process has ended."""
    before = snapshot(run)
    while count and process.poll() is None:
        time.sleep(0.001)
        now = snapshot(run)
        count -= now != before
        before = now


def snapshot(run: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder with its time of last change and size; those that vanish meanwhile are left out."""
    found = {}
    with contextlib.suppress(OSError):
        for path in [run, *run.rglob("*")]:
            status = path.stat()
            # The mapped features change with every page that is touched; what counts is when they are committed.
            found[path] = 0 if path.suffix == ".npy" else status.st_mtime_ns, status.st_size
    return found


def sleep(seconds: float, process: subprocess.Popen[bytes]) -> None:
    """So long, or until the process has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def tell(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
