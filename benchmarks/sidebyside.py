"""Two ways to do one work, timed in turn: A B A B ..., so that a machine that drifts drifts for both.

A side is a function that does a fixed number of items and returns how many it did a second. A side that needs another
process environment (the peer knows nothing of our malloc and thread settings) is a `Process`: a script that times
itself. A loop of the library is given its pace by `paced`, without being touched.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distilhash.__main__ import ENVIRONMENT

RESULTS = Path(__file__).parent / "results.json"
PAIRS = 5

Side = Callable[[], float]  # returns items a second of one run


@dataclass
class Work:
    """One row of the results: what was done, by whom, and how much faster."""

    work: str
    peer: str
    unit: str
    least: float  # the ratio that is promised
    settings: dict[str, object] = field(default_factory=dict)


def timed(run: Callable[[], int]) -> Side:
    """A side from a function that returns how many items it did."""

    def side() -> float:
        began = time.perf_counter()
        items = run()
        return items / (time.perf_counter() - began)

    return side


def ready_environment() -> None:
    """Start this process again with the environment variables of the command line, where it lacks one."""
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | ENVIRONMENT)


class Process:
    """A side in a process of its own: a script that, for each line "go" on stdin, prints its items a second.

    The environment is the caller's without what the command line of distilhash sets, so that a peer runs as its user
    would run it; a side of ours passes ENVIRONMENT.
    """

    def __init__(self, *command: str, **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=clean | environment,
        )  # fmt: skip

    def __call__(self) -> float:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self._process.args))} came to nothing: {self._process.wait()}")
        return float(line)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def serve(side: Side) -> None:
    """What a script of a `Process` calls: one run for each line of stdin."""
    for _ in sys.stdin:
        print(side(), flush=True)


def paced(items: int, steps: int) -> Callable[..., Iterator[Any]]:
    """A `distilhash.data.prefetch.prefetch` that lets a loop of the library go for so many steps at each line "go".

    It goes in the place of the prefetch that the loop's module imported; ``items`` is what one run does. A run begins
    with all batches that are read ahead at hand, and ends when as many are at hand again: what is timed is exactly so
    many steps, and the making of so many batches.
    """
    from distilhash.data.prefetch import prefetch

    def feed(load: Callable[[Any], Any], keys: Iterable[Any], **options: Any) -> Iterator[Any]:
        begun, ended = [], []  # lists, whose append() no thread can interrupt

        def noted() -> Iterator[Any]:
            for key in keys:
                begun.append(key)
                yield key

        def loaded(key: Any) -> Any:
            result = load(key)
            ended.append(key)
            return result

        batches = prefetch(loaded, noted(), **options)
        for _ in sys.stdin:
            began = time.perf_counter()
            yield from itertools.islice(batches, steps)
            while len(ended) < len(begun):
                time.sleep(1e-4)
            print(items / (time.perf_counter() - began), file=sys.__stdout__, flush=True)
        raise SystemExit(0)  # nobody waits for the loop's end

    return feed


def pairwise(peer: Side, ours: Side, pairs: int = PAIRS) -> list[tuple[float, float]]:
    """The rates of both, in turn, after one run of each that does not count."""
    peer(), ours()
    return [(peer(), ours()) for _ in range(pairs)]


def compare(work: Work, peer: Side, ours: Side, pairs: int = PAIRS) -> dict[str, object]:
    """Time both in turn after a warm-up, print the row, and keep it in results.json."""
    rates = pairwise(peer, ours, pairs)
    ratio = statistics.median(b / a for a, b in rates)
    row: dict[str, object] = {
        "work": work.work,
        "peer": work.peer,
        "peer_rate": statistics.median(a for a, _ in rates),
        "ours_rate": statistics.median(b for _, b in rates),
        "unit": work.unit,
        "ratio": ratio,
        "least": work.least,
        "pairs": pairs,
        "spread": [min(b / a for a, b in rates), max(b / a for a, b in rates)],
        "settings": {"machine": machine(), **work.settings},
    }
    keep(row)
    print(
        f"{work.work:<14} {row['peer_rate']:>10.2f} {row['ours_rate']:>10.2f} {work.unit:<10} {ratio:>7.2f}x"
        f"  (at least {work.least:g}x: {'holds' if ratio >= work.least else 'MISSED'})"
    )
    return row


def keep(row: dict[str, object]) -> None:
    """Put a row in the place of an older one of the same work."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [old for old in rows if old["work"] != row["work"]] + [row]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def machine() -> str:
    """The class of machine: what the ratio depends on."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {name}" in flags]
    return f"{platform.machine()}, {os.cpu_count()} cores, {' '.join(known)}"
