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
    arms=("teacher_finetuned", "teacher_frozen", "distilled", "scratch"),
    frameworks=("csq", "dch"),
    bits=(16, 32, 48, 64),
)


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
    seen: set[tuple[object, ...]] = set()
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
    arm = _text(row, "arm", needed=True)
    if arm not in ARMS:
        raise unknown_name("arm", arm, ARMS)
    bits = _count(row, "bits", needed=True)
    seed = _count(row, "seed", needed=True)
    if not bits:
        raise _unsound("bits", bits)
    assert seed is not None
    at, value = _map(row)
    return Trial(
        arm=arm,
        bits=bits,
        seed=seed,
        at=at,
        map=value,
        backbone=_text(row, "backbone", needed=True),
        framework=_text(row, "framework", needed=True),
        dataset=_text(row, "dataset", needed=True),
        protocol=_text(row, "protocol", needed=True),
        budget=_text(row, "budget"),
        stable_map=_number(row, "stable_map", most=1),
        chosen=_pick(row, "chosen"),
        best_on_test=_pick(row, "best_on_test"),
        precision_at_radius_2=_number(row, "precision_at_radius_2", most=1),
        parameters=_number(row, "parameters"),
        macs=_number(row, "macs"),
        seconds=_number(row, "seconds"),
        input_size=_count(row, "input_size"),
        epochs=_count(row, "epochs"),
        machine=_text(row, "machine"),
        command=_text(row, "command"),
        settings=_mapping(row, "settings"),
        precision_recall=_curve(row, "curves", "recall", most=1),
        precision_at_n=_curve(row, "precision_at_n", "n", most=math.inf),
    )


def _unsound(name: str, got: object) -> DistilhashError:
    return DistilhashError(f"a trial has no sound {name!r}", repr(got)[:80], FIX)


def _map(row: Mapping[str, Any]) -> tuple[int | None, float]:
    """The depth and the value of the trial's mAP; that at a depth, where both are there: only the asked-for one is."""
    names = sorted(name for name in row if re.fullmatch(r"map_at_[1-9]\d{0,8}", name))
    if len(names) > 1:
        raise DistilhashError("a trial has more than one mAP", ", ".join(names), FIX)
    name = names[0] if names else "map_at_all"
    return int(name.removeprefix("map_at_")) if names else None, _number(row, name, most=1)


def _text(row: Mapping[str, Any], name: str, needed: bool = False) -> str:
    value = row.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or (needed and not value):
        raise _unsound(name, value)
    return value


def _number(row: Mapping[str, Any], name: str, most: float = math.inf) -> float:
    value = row.get(name)
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not _within(value, most):
        raise _unsound(name, value)
    return float(value)


def _within(value: float, most: float) -> bool:
    return math.isnan(value) or (0 <= value <= most and value < math.inf)


def _count(row: Mapping[str, Any], name: str, needed: bool = False) -> int | None:
    value = row.get(name)
    if value is None and not needed:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
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


def _curve(row: Mapping[str, Any], name: str, x: str, most: float) -> tuple[Sequence[float], Sequence[float]]:
    held = _mapping(row, name)
    axes = {x: held.get(x) or [], "precision": held.get("precision") or []}
    if not all(isinstance(values, list) for values in axes.values()) or len(axes[x]) != len(axes["precision"]):
        raise _unsound(name, f"{x} and precision that are not lists of one length")
    across = [_number({x: value}, x, most) for value in axes[x]]
    return across, [_number({"precision": value}, "precision", most=1) for value in axes["precision"]]
