"""The trials of a comparison, checked as they are read from results.json.

A trial is one hasher and its numbers: an arm, a backbone, a framework, a code length and a seed on one data set. One
whose mAP is null was planned and is not done.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from distilhash.errors import DistilhashError, unknown_name

ARMS = {  # the key in results.json, and what the reader calls it, in the order of tables and legends
    "distilled": "Distilled student",
    "scratch": "Student from scratch",
    "teacher_frozen": "Frozen teacher",
    "teacher_finetuned": "Fine-tuned teacher",
}

LARGEST = 10**18  # of a number in a trial: sums and charts of such numbers are finite
Text = Annotated[str, Field(max_length=20_000)]
Name = Annotated[str, Field(min_length=1, max_length=20_000)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Number = Annotated[float, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class TrialKey(_Checked):
    """What tells a trial of one comparison from the others."""

    seed: Count
    bits: Annotated[int, Field(ge=1, le=LARGEST)]
    framework: Name  # "csq" or "dch"
    arm: Name  # a key of ARMS

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.arm}-{self.framework}-{self.bits}-{self.seed}"

    @property
    def stage(self) -> str:
        """The run directory of its hasher, below the directory of its seed."""
        return f"hash-{self.arm}-{self.framework}-{self.bits}"


class Pick(_Checked):
    """An epoch that was picked by a score, and its mAP on the queries."""

    epoch: Count
    map: Share


class Precision(_Checked):
    """Precision by recall, or by the number of images returned."""

    x: Annotated[Sequence[Number], Field(validation_alias=AliasChoices("recall", "n"))] = ()
    precision: Sequence[Share] = ()

    @model_validator(mode="after")
    def _of_one_length(self) -> Precision:
        if len(self.x) != len(self.precision):
            raise ValueError("its lists differ in their lengths")
        return self


class Trial(TrialKey):
    """One run and its numbers; NaN, None or nothing where a number was not measured."""

    split_seed: Count | None = None  # shared by the seeds of a comparison; None: not recorded
    backbone: Name
    dataset: Name
    protocol: Name
    budget: Text = ""  # "paper", "desktop" or "smoke"
    at: int | None = None  # mAP over this many nearest images; None: over all
    map: Share = math.nan  # expected AP, last epoch
    stable_map: Share = math.nan  # the same with ties by database order
    chosen: Pick | None = None  # the epoch chosen on validation images
    best_on_test: Pick | None = None  # the epoch that suits the queries best: optimistic, always marked as such
    precision_at_radius_2: Share = math.nan
    parameters: Number = math.nan
    macs: Number = math.nan  # multiply-adds of one image
    seconds: Number = math.nan
    input_size: Count | None = None  # side, pixels
    epochs: Count | None = None
    machine: Text = ""
    command: Text = ""
    settings: dict[str, Any] = {}
    curves: Precision = Precision()  # by recall
    precision_at_n: Precision = Precision()
    average_precision: Sequence[Share] = ()  # expected, of each query

    @property
    def done(self) -> bool:
        """Whether the trial has its result."""
        return math.isfinite(self.map)

    @property
    def metric(self) -> str:
        """What its mAP is called."""
        return "mAP@all" if self.at is None else f"mAP@{self.at}"


class Grid(NamedTuple):
    """The rows and columns that were planned, in the order of the tables; empty: the trials are the plan."""

    arms: Sequence[str] = ()
    frameworks: Sequence[str] = ()
    bits: Sequence[int] = ()


PAPER = Grid(("teacher_finetuned", "teacher_frozen", "distilled", "scratch"), ("csq", "dch"), (16, 32, 48, 64))


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


def _trial(row: Mapping[str, Any]) -> Trial:
    fix = "run this trial again"
    if not isinstance(row, Mapping):
        raise DistilhashError("a trial must be a JSON object", type(row).__name__, fix)
    depths = sorted(name for name in row if re.fullmatch(r"map_at_[1-9]\d{0,8}", name))
    if len(depths) > 1:
        raise DistilhashError("a trial has more than one mAP", ", ".join(depths), fix)
    metric = depths[0] if depths else "map_at_all"  # at a depth where both are there
    at = int(metric.removeprefix("map_at_")) if depths else None
    try:
        held = {**row, "map": row.get(metric), "at": at}
        trial = Trial.model_validate({name: v for name, v in held.items() if not (v is None or _is_nan(v))})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        got = "nothing" if first["type"] == "missing" else repr(first["input"])[:80]
        raise DistilhashError(f"a trial has no sound {metric if name == 'map' else name!r}", got, fix) from error
    if trial.arm not in ARMS:
        raise unknown_name("arm", trial.arm, ARMS)
    return trial


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
