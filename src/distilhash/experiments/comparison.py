"""The trials of a report as tables: means over seeds, what is missing, what is best, what settings differ.

A table holds one data set, protocol and budget; numbers of different ones are never pooled. A place of a table is a row
(arm, backbone) and a column (framework, bits); its entry is the trials there, which differ in their seeds alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from distilhash.experiments.trials import ARMS, Grid, Pick, Trial, leaves

BUDGETS = ("paper", "desktop", "smoke")  # the largest first
DATASETS = {"cifar10": "CIFAR-10", "nuswide": "NUS-WIDE", "mosaics": "Mosaics"}
MISSING = "\N{EN DASH}"

Row = tuple[str, str]  # arm, backbone; the backbone is empty where none is known yet
Column = tuple[str, int]  # framework, bits
Place = tuple[Row, Column]


def score(value: float) -> str:
    """A number in [0, 1] as papers print it: .573."""
    return f"{value:.3f}".removeprefix("0") if math.isfinite(value) else MISSING


def signed(difference: float) -> str:
    """A difference of scores with its sign: +.112."""
    digits = score(abs(difference))
    return ("±" if digits == ".000" else "+" if difference > 0 else "\N{MINUS SIGN}") + digits


def count(value: float) -> str:
    """A large count in four digits with its prefix: 3.437 M, 88.70 M."""
    if not math.isfinite(value):
        return MISSING
    for scale, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= scale:
            return f"{value / scale:#.4g}".removesuffix(".") + prefix
    return f"{value:.0f}"


def whole(value: float) -> str:
    """A number without decimals, thousands set apart: 1,234."""
    return f"{value:,.0f}" if math.isfinite(value) else MISSING


@dataclass(frozen=True)
class Entry:
    """The trials of one place, in the order of their seeds; at least one."""

    trials: Sequence[Trial]

    @property
    def one(self) -> Trial:
        """The trial with the lowest seed."""
        return self.trials[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its trials."""
        return tuple(trial.seed for trial in self.trials)

    @property
    def mean(self) -> float:
        """Mean mAP over seeds."""
        return self.mean_of("map")

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest mAP of a seed."""
        return min(trial.map for trial in self.trials), max(trial.map for trial in self.trials)

    @property
    def mixed(self) -> bool:
        """Whether its trials differ in more than the seed after all; the page marks them."""
        return len({json.dumps(_settings(trial), sort_keys=True) for trial in self.trials}) > 1

    def mean_of(self, name: str) -> float:
        """Mean over seeds of a number of the trials; NaN where a seed lacks it."""
        values = [getattr(trial, name) for trial in self.trials]
        return fmean(v.map if isinstance(v, Pick) else math.nan if v is None else v for v in values)

    def change(self, name: str) -> float:
        """How far the mAP of another choice of epoch is above that of the last epoch, in the three digits shown."""
        return round(round(self.mean_of(name), 3) - round(self.mean, 3), 3)


class Table(NamedTuple):
    """The entries of one data set, protocol and budget, and the places that were planned."""

    dataset: str
    protocol: str
    budget: str
    metric: str
    rows: list[Row]
    columns: list[Column]
    entries: dict[Place, Entry]
    planned: set[Place]

    @property
    def name(self) -> str:
        """The data and the budget, as a reader knows them."""
        data = DATASETS.get(self.dataset, self.dataset)
        return f"{data}, {self.budget} budget" if self.budget else data

    @property
    def frameworks(self) -> list[str]:
        """The frameworks of the columns, in order."""
        return list(dict.fromkeys(framework for framework, _ in self.columns))

    @property
    def bits(self) -> list[int]:
        """The code lengths of the columns, ascending."""
        return sorted({bits for _, bits in self.columns})

    @property
    def seeds(self) -> tuple[int, ...] | None:
        """The seeds of every entry, where all have the same; None where they differ or nothing is done."""
        found = {entry.seeds for entry in self.entries.values()}
        return found.pop() if len(found) == 1 else None

    @property
    def trials(self) -> list[Trial]:
        """The trials of all entries."""
        return [trial for entry in self.entries.values() for trial in entry.trials]

    def knows(self, pick: str) -> bool:
        """Whether an entry has another choice of the epoch for each of its seeds: fewer would not be its mean."""
        return any(math.isfinite(entry.mean_of(pick)) for entry in self.entries.values())

    def entries_of(self, row: Row) -> list[Entry | None]:
        """A row's entries in the order of the columns; None where one is not done."""
        return [self.entries.get((row, column)) for column in self.columns]

    def costs(self, row: Row) -> Trial | None:
        """The trial whose parameters and multiply-adds stand for a row: the longest code's, which costs most."""
        return max((entry.one for entry in self.entries_of(row) if entry), key=lambda trial: trial.bits, default=None)

    def short_name(self, row: Row) -> str:
        """An arm's name, with its backbone where the arm has several in this table."""
        several = sum(arm == row[0] for arm, _ in self.rows) > 1
        return f"{ARMS[row[0]]}, {row[1]}" if several else ARMS[row[0]]


def tables_of(trials: Sequence[Trial], grid: Grid) -> list[Table]:
    """The tables of these trials, the largest budget first, otherwise in the order of the trials.

    Args:
        trials: those that are done and those that were planned.
        grid: what else was planned; every table is as large as this, or larger.
    """
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.budget, trial.dataset, trial.protocol), []).append(trial)
    made = []
    for key in sorted(groups, key=lambda key: BUDGETS.index(key[0]) if key[0] in BUDGETS else len(BUDGETS)):
        done = [trial for trial in groups[key] if trial.done]
        for metric in dict.fromkeys(trial.metric for trial in done or groups[key]):
            made.append(_table([t for t in groups[key] if t.metric == metric or not t.done], metric, grid))
    return made


def _table(trials: Sequence[Trial], metric: str, grid: Grid) -> Table:
    arms = [*grid.arms, *(arm for arm in ARMS if arm not in grid.arms and any(t.arm == arm for t in trials))]
    rows: list[Row] = []
    for arm in arms:
        backbones = dict.fromkeys(trial.backbone for trial in trials if trial.arm == arm)
        rows += [(arm, backbone) for backbone in backbones or ("",)]
    frameworks = dict.fromkeys([*grid.frameworks, *(trial.framework for trial in trials)])
    bits = sorted({*grid.bits, *(trial.bits for trial in trials)})
    columns = [(framework, length) for framework in frameworks for length in bits]
    planned = {_place(trial) for trial in trials}
    if grid.arms:
        planned = {(row, column) for row in rows for column in columns}
    done: dict[Place, list[Trial]] = {}
    for trial in sorted((trial for trial in trials if trial.done), key=lambda trial: trial.seed):
        done.setdefault(_place(trial), []).append(trial)
    entries = {place: Entry(own) for place, own in done.items()}
    first = trials[0]
    return Table(first.dataset, first.protocol, first.budget, metric, rows, columns, entries, planned)


def _place(trial: Trial) -> Place:
    return (trial.arm, trial.backbone), (trial.framework, trial.bits)


def done_of(tables: Iterable[Table]) -> str:
    """How much of the plan is there: "18 of 32 entries are done"."""
    done, planned = (sum(counts) for counts in zip(*((len(t.entries), len(t.planned)) for t in tables), strict=True))
    return f"{done} of {planned} entries {'is' if done == 1 else 'are'} done"


def best_of(
    table: Table, field: str, written: Callable[[float], str], more: bool = True, arms: Collection[str] = ARMS
) -> set[Place]:
    """The places that are best in their column by a field, in the digits shown; none where all are equal."""
    found = set()
    for column in table.columns:
        entries = {row: table.entries.get((row, column)) for row in table.rows if row[0] in arms}
        values = {row: entry.mean_of(field) for row, entry in entries.items() if entry}
        finite = {row: value for row, value in values.items() if math.isfinite(value)}
        if len({written(value) for value in finite.values()}) > 1:
            best = written((max if more else min)(finite.values()))
            found |= {(row, column) for row, value in finite.items() if written(value) == best}
    return found


def settings_apart(entries: Mapping[Place, Entry]) -> tuple[dict[str, str], dict[Place, dict[str, str]]]:
    """The settings that all entries share, and for each those that set it apart; no seed among either."""
    own = {place: _settings(entry.one) for place, entry in entries.items()}
    shared = set.intersection(*(set(flat.items()) for flat in own.values())) if own else set()
    apart = {place: {k: v for k, v in flat.items() if (k, v) not in shared} for place, flat in own.items()}
    first = next(iter(own.values()), {})
    return {k: v for k, v in first.items() if (k, v) in shared}, apart


def _settings(trial: Trial) -> dict[str, str]:
    flat = {"epochs": f"{trial.epochs}", "input side, pixels": f"{trial.input_size}"} | leaves(trial.settings)
    return {k: v for k, v in flat.items() if k.rpartition(".")[2] != "seed" and v != "None"}
