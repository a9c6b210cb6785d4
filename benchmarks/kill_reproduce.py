"""Proof that a comparison that is killed, or cut into shards, ends in the table of one that was left in peace.

    python benchmarks/kill_reproduce.py --kills 10 --seed 0

`distilhash reproduce cifar10 --budget smoke` at 16 bits and seed 0, every arm and both frameworks: once whole; once
killed (SIGKILL) at moments drawn between none and a share of the whole run's time, and resumed each time; and once as
two shards in directories of their own, whose trials are then put together. The three tables must be equal to the byte,
and so must the numbers of every trial but its seconds. On one thread, where sums are always taken in the same order.

One line on stdout, progress on stderr; exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TRIALS = ["--budget", "smoke", "--bits", "16", "--seeds", "0"]
LONGEST = 0.6  # of the whole run's time, that a killed process lives


def main() -> int:
    """Run the proof and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="how often a process is killed, count")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kill_reproduce_") as place:
        whole, killed, first, second = (Path(place) / name for name in ("whole", "killed", "first", "second"))
        began = time.monotonic()
        finish(start(whole))
        seconds = time.monotonic() - began
        kills, wrong = 0, False
        while kills < options.kills:
            process = start(killed)
            time.sleep(draw.uniform(0, LONGEST * seconds))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            done = len(list((killed / "trials").glob("*.json")))
            print(f"kill {kills} of {options.kills}: {done} trials are done", file=sys.stderr, flush=True)
            if done == len(numbers(whole)):  # the rest of the kills goes over a run of its own
                finish(start(killed))
                wrong |= differs(killed, whole)
                shutil.rmtree(killed)
        finish(start(killed))
        wrong |= differs(killed, whole)
        for number, folder in enumerate((first, second), start=1):
            finish(start(folder, "--shard", f"{number}/2"))
        for file in (second / "trials").iterdir():
            shutil.copy(file, first / "trials")
        finish(start(first))
        wrong |= differs(first, whole)
        trials = len(numbers(whole))
    verdict = "DIFFERENT" if wrong else "equal"
    print(
        f"{verdict}: {trials} trials whole, killed {kills} times, and in two shards; {time.monotonic() - began:.0f} s"
    )
    return 1 if wrong else 0


def differs(run: Path, whole: Path) -> bool:
    """Has the run other numbers, or another table?"""
    tables = [(folder / "table.md").read_bytes() for folder in (run, whole)]
    return numbers(run) != numbers(whole) or tables[0] != tables[1]


def start(output: Path, *more: str) -> subprocess.Popen[bytes]:
    """The command: it begins, or goes on."""
    command = [sys.executable, "-m", "distilhash", "reproduce", "cifar10", *TRIALS, "--output", str(output), "--resume"]
    return subprocess.Popen(
        [*command, "--quiet", *more], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end, which must be a good one."""
    if process.wait() != 0:
        sys.exit(f"the comparison failed, exit code {process.returncode}")


def numbers(output: Path) -> list[dict[str, Any]]:
    """The rows of results.json without their seconds."""
    rows = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
