"""Progress of long work: a bar with rate and time left in a terminal, plain lines elsewhere, the same numbers.

The package logs under the name ``distilhash``, and a program that uses it decides what becomes of that. Progress is
logged at level INFO; where the command line has put its handler on a terminal, it is a bar instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_SECONDS = 5.0  # between two lines where there is no terminal

log = logging.getLogger("distilhash")
console = Console(stderr=True)  # what the command line logs to, so that bar and log lines do not overwrite each other


class Counter:
    """Counts finished units of one piece of work and says how fast they come."""

    def __init__(self, what: str, total: int, unit: str, done: int, bar: Progress | None) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._facts: dict[str, float] = {}
        self._began = self._said = time.monotonic()
        self._first, self._bar = done, bar
        self._task = bar.add_task(str(self), total=total, completed=done) if bar else None

    def add(self, count: int = 1, **facts: float) -> None:
        """Count ``count`` more units; ``facts`` (a loss, say) are shown beside them from now on."""
        self.done += count
        self._facts |= facts
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.done, description=str(self))
        elif time.monotonic() - self._said >= LINE_SECONDS and self.done < self.total:
            self._said = time.monotonic()
            log.info("%s", self)

    def __str__(self) -> str:
        """What a person reads: done of total, rate, time left, facts."""
        rate = (self.done - self._first) / max(1e-9, time.monotonic() - self._began)
        parts = [f"{self.what} {self.done:,}/{self.total:,} {self.unit}", f"{rate:,.0f}/s"]
        if rate and self.done < self.total:
            parts.append(f"{timedelta(seconds=round((self.total - self.done) / rate))} left")
        return "  ".join([*parts, *(f"{name} {value:.4f}" for name, value in self._facts.items())])


@contextmanager
def progress(what: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Counter]:
    """Show the progress of the block, which calls ``add`` of the counter it is given.

    Args:
        what: the work, in a few words.
        total: units in all.
        unit: what is counted, in the plural.
        done: units that an earlier process has finished already.
    """
    bar = None
    if log.isEnabledFor(logging.INFO) and console.is_terminal and not console.is_dumb_terminal:
        bar = Progress(BarColumn(24), TextColumn("{task.description}"), console=console, transient=True)
    with bar or nullcontext():
        counter = Counter(what, total, unit, done, bar)
        yield counter
    log.info("%s", counter)
