"""The trials of a comparison and everything that its report shows, as plain data.

A trial is one hasher and its numbers: an arm, a backbone, a framework, a code length and a seed on one data set. Trials
are read from JSON, checked once, and plain from there on. A trial whose mAP is null was planned and is not done.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distilhash.errors import DistilhashError, unknown_name

ARMS = {  # the key in results.json, and what the reader calls it, in the order of tables and legends
    "distilled": "Distilled student",
    "scratch": "Student from scratch",
    "teacher_frozen": "Frozen teacher",
    "teacher_finetuned": "Fine-tuned teacher",
}

FIX = "run this trial again"
LONGEST_TEXT = 20_000  # characters of one text in a trial
LARGEST = 10.0**18  # of a number in a trial: sums and charts of such numbers are finite


@dataclass(frozen=True, kw_only=True)
class TrialKey:
    """What tells a trial of one comparison from the others."""

    seed: int
    bits: int
    framework: str
    arm: str  # a key of ARMS

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.arm}-{self.framework}-{self.bits}-{self.seed}"

    @property
    def stage(self) -> str:
        """The run directory of its hasher, below the directory of its seed."""
        return f"hash-{self.arm}-{self.framework}-{self.bits}"


class Pick(NamedTuple):
    """An epoch that was picked by a score, and its mAP on the queries."""

    epoch: int
    map: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run and its numbers; NaN, None or nothing where a number was not measured."""

    arm: str  # a key of ARMS
    backbone: str
    framework: str  # "csq" or "dch"
    bits: int
    seed: int
    dataset: str
    protocol: str
    budget: str = ""  # "paper", "desktop" or "smoke"
    at: int | None = None  # mAP over this many nearest images; None: over all
    map: float = math.nan  # expected AP, last epoch
    stable_map: float = math.nan  # the same with ties by database order
    chosen: Pick | None = None  # the epoch chosen on validation images
    best_on_test: Pick | None = None  # the epoch that suits the queries best: optimistic, always marked as such
    precision_at_radius_2: float = math.nan
    parameters: float = math.nan
    macs: float = math.nan  # multiply-adds of one image
    seconds: float = math.nan
    input_size: int | None = None  # side, pixels
    epochs: int | None = None
    machine: str = ""
    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    precision_recall: tuple[Sequence[float], Sequence[float]] = ((), ())  # recall, precision
    precision_at_n: tuple[Sequence[float], Sequence[float]] = ((), ())  # n, precision

    @property
    def done(self) -> bool:
        """Whether the trial has its result."""
        return math.isfinite(self.map)

    @property
    def metric(self) -> str:
        """What its mAP is called."""
        return "mAP@all" if self.at is None else f"mAP@{self.at}"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A named line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]  # NaN breaks the line
    arm: str = ""  # a key of ARMS, for its colour; empty: a neutral colour


class Neighbour(NamedTuple):
    """One image that a search found."""

    png: bytes
    label: str
    distance: int  # bits
    relevant: bool


@dataclass(frozen=True, kw_only=True)
class Example:
    """One query image and what an arm finds nearest to it, nearest first."""

    query_png: bytes
    label: str
    neighbours: Sequence[Neighbour]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The rows and columns that were planned, in the order of the tables; empty: the trials are the plan."""

    arms: Sequence[str] = ()
    frameworks: Sequence[str] = ()
    bits: Sequence[int] = ()


PAPER = Grid(
    arms=("teacher_finetuned", "teacher_frozen", "distilled", "scratch"), frameworks=("csq", "dch"),
    bits=(16, 32, 48, 64),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the page shows; a part that is empty is left out of it."""

    title: str
    subtitle: str = ""  # the argument, in a sentence or two
    trials: Sequence[Trial]
    grid: Grid = Grid()  # what was planned; entries of it that are not done are shown as missing
    training: Sequence[tuple[str, str, Sequence[Curve]]] = ()  # figure title, name of y, curves by epoch
    examples: Sequence[tuple[str, Sequence[Example]]] = ()  # arm, its queries
    provenance: Mapping[str, str] = field(default_factory=dict)  # "command" is set apart as code
    notes: Sequence[str] = ()  # sentences for "how it was measured"


def read_trials(rows: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """Trials from the rows of results.json.

    Raises:
        DistilhashError: a field is unsound, which is named, or a trial is there twice.
    """
    trials = [_trial(row) for row in rows]
    seen = set()
    for t in (trial for trial in trials if trial.done):
        key = (t.dataset, t.protocol, t.budget, t.at, t.arm, t.backbone, t.framework, t.bits, t.seed)
        if key in seen:
            name = f"{t.dataset}, {t.arm}, {t.backbone}, {t.framework}, {t.bits} bits, seed {t.seed}"
            raise DistilhashError("a comparison holds one trial twice", name, "keep one of the two")
        seen.add(key)
    return trials


def leaves(settings: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested settings as flat names and texts: {"hash": {"bits": 64}} is "hash.bits": "64"."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        full = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping):
            found |= leaves(value, full)
        else:
            found[full] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


def _trial(row: Mapping[str, Any]) -> Trial:
    if not isinstance(row, Mapping):
        raise DistilhashError("a trial must be a JSON object", type(row).__name__, FIX)
    if (arm := _text(row, "arm", needed=True)) not in ARMS:
        raise unknown_name("arm", arm, ARMS)
    if not _count(row, "bits", needed=True):
        raise _unsound("bits", row["bits"])
    fields: dict[str, Any] = {
        **{name: _text(row, name, needed=True) for name in ("arm", "backbone", "framework", "dataset", "protocol")},
        **{name: _text(row, name) for name in ("budget", "machine", "command")},
        **{name: _count(row, name, needed=True) for name in ("bits", "seed")},
        **{name: _count(row, name) for name in ("input_size", "epochs")},
        **{name: _number(row, name, most=1) for name in ("stable_map", "precision_at_radius_2")},
        **{name: _number(row, name) for name in ("parameters", "macs", "seconds")},
        **{name: _pick(row, name) for name in ("chosen", "best_on_test")},
    }
    depths = sorted(name for name in row if re.fullmatch(r"map_at_[1-9]\d{0,8}", name))
    if len(depths) > 1:
        raise DistilhashError("a trial has more than one mAP", ", ".join(depths), FIX)
    return Trial(
        **fields,
        at=int(depths[0].removeprefix("map_at_")) if depths else None,
        map=_number(row, depths[0] if depths else "map_at_all", most=1),  # at a depth where both are there
        settings=_mapping(row, "settings"),
        precision_recall=_curve(row, "curves", "recall", most=1),
        precision_at_n=_curve(row, "precision_at_n", "n"),
    )


def _unsound(name: str, got: object) -> DistilhashError:
    return DistilhashError(f"a trial has no sound {name!r}", repr(got)[:80], FIX)


def _text(row: Mapping[str, Any], name: str, needed: bool = False) -> str:
    value = row.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or (needed and not value):
        raise _unsound(name, value)
    return value


def _number(row: Mapping[str, Any], name: str, most: float = LARGEST) -> float:
    """A number from 0 to ``most``; NaN where there is none."""
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise _unsound(name, value)
    return float(value)


def _count(row: Mapping[str, Any], name: str, needed: bool = False) -> int | None:
    value = row.get(name)
    if value is None and not needed:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise _unsound(name, value)
    return value


def _mapping(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = row.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise _unsound(name, value)
    return value or {}


def _pick(row: Mapping[str, Any], name: str) -> Pick | None:
    picked = _mapping(row, name)
    epoch, value = _count(picked, "epoch", needed=bool(picked)), _number(picked, "map", most=1)
    return Pick(epoch, value) if epoch is not None and math.isfinite(value) else None


def _curve(row: Mapping[str, Any], name: str, x: str, most: float = LARGEST) -> tuple[Sequence[float], Sequence[float]]:
    held = _mapping(row, name)
    across, precision = held.get(x) or [], held.get("precision") or []
    if not isinstance(across, list) or not isinstance(precision, list) or len(across) != len(precision):
        raise _unsound(name, f"{x} and precision that are not lists of one length")
    return [_number({x: v}, x, most) for v in across], [_number({"precision": v}, "precision", 1) for v in precision]
