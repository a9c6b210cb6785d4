"""The trials of a report as tables, and what they show: means over seeds, what is best, how a student compares.

A table holds one data set, protocol and budget; numbers of different ones are never pooled. A place of a table is a row
(arm, backbone) and a column (framework, bits); its entry is the trials there, which differ in their seeds alone. The
headline and its facts are beside the tables because they are read off the same entries in the same digits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from distilhash.experiments.trials import ARMS, Grid, Pick, Trial

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


def difference(value: float, other: float) -> float:
    """How far a score is above another, in the three digits shown."""
    return round(round(value, 3) - round(other, 3), 3)


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
        """How far the mAP of another choice of epoch is above that of the last epoch."""
        return difference(self.mean_of(name), self.mean)


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

    @property
    def seconds(self) -> float:
        """What the training of all entries took, as far as it is known."""
        return math.fsum(trial.seconds for trial in self.trials if math.isfinite(trial.seconds))

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
    """The tables of trials, each at least as large as the grid; the largest budget first, else in their order."""
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
    backbones = {arm: dict.fromkeys(t.backbone for t in trials if t.arm == arm) or ("",) for arm in arms}
    rows = [(arm, backbone) for arm in arms for backbone in backbones[arm]]
    frameworks = dict.fromkeys([*grid.frameworks, *(trial.framework for trial in trials)])
    columns = list(product(frameworks, sorted({*grid.bits, *(trial.bits for trial in trials)})))
    planned = set(product(rows, columns)) if grid.arms else {_place(trial) for trial in trials}
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
    done, planned = _counts(tables)
    return f"{done} of {planned} entries {'is' if done == 1 else 'are'} done"


def _counts(tables: Iterable[Table]) -> list[int]:
    """How many entries are done and planned."""
    return [sum(counts) for counts in zip(*((len(t.entries), len(t.planned)) for t in tables), strict=True)]


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


def _settings(trial: Trial) -> dict[str, str]:
    flat = {"epochs": f"{trial.epochs}", "input side, pixels": f"{trial.input_size}"} | leaves(trial.settings)
    return {k: v for k, v in flat.items() if k.rpartition(".")[2] != "seed" and v != "None"}


class Pair(NamedTuple):
    """A distilled student and a baseline of it, in one column of a table."""

    ours: Entry
    theirs: Entry

    @property
    def difference(self) -> float:
        """Ours minus theirs."""
        return difference(self.ours.mean, self.theirs.mean)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of the difference over queries, by the normal distribution; None where it is not known.

        Paired: a query's difference is taken of both hashers of a seed, and its mean over the seeds of one split.
        """
        others = {trial.seed: trial for trial in self.theirs.trials}
        by_split: dict[Any, list[Any]] = {}
        for ours in self.ours.trials:
            theirs = others.pop(ours.seed, None)
            both = (ours, theirs)
            if len({(t.split_seed, len(t.average_precision)) if t else None for t in both}) > 1 or theirs is None:
                return None
            of_query = np.subtract(ours.average_precision, theirs.average_precision)
            by_split.setdefault((ours.split_seed, ours.split_seed is None and ours.seed), []).append(of_query)
        of_query = np.concatenate([np.mean(seeds, axis=0) for seeds in by_split.values()])
        if others or len(of_query) < 2:
            return None
        half = 1.96 * of_query.std(ddof=1) / math.sqrt(len(of_query))
        return float(of_query.mean() - half), float(of_query.mean() + half)


def pairs_of(tables: Iterable[Table], baseline: str) -> list[Pair]:
    """Each distilled entry beside the baseline's of the same column.

    A student from scratch is one of the same backbone; a teacher is the one that the student's settings name, or the
    only one.
    """
    found = []
    for table in tables:
        for (row, column), entry in table.entries.items():
            if row[0] == "distilled":
                other = (baseline, row[1]) if baseline == "scratch" else _teacher_of(entry.one, table, baseline)
                theirs = table.entries.get((other, column)) if other else None
                found += [Pair(entry, theirs)] if theirs else []
    return found


def _teacher_of(student: Trial, table: Table, arm: str) -> Row | None:
    rows = [row for row in table.rows if row[0] == arm]
    flat = leaves(student.settings)
    names = {text for name, text in flat.items() if f".{name}".endswith((".teacher", ".teacher.name"))}
    own = [row for row in rows if row[1] in names or row[1].split(" ")[0] in names]  # "NAME at 224 px"
    one = own if len(rows) > 1 else rows
    return one[0] if len(one) == 1 else None


def gains_of(table: Table) -> dict[str, dict[Column, Pair]]:
    """For each student trained both ways: the pair that shows what distillation adds in each column."""
    gains: dict[str, dict[Column, Pair]] = {}
    for pair in pairs_of([table], "scratch"):
        one = pair.ours.one
        gains.setdefault(one.backbone, {})[one.framework, one.bits] = pair
    return gains


def interval_text(pair: Pair) -> str:
    """The interval of a difference as it is shown: +.100 to +.124; empty where it is not known."""
    return " to ".join(map(signed, pair.interval)) if pair.interval else ""


class Findings:
    """What the headline and the facts below it speak of: the distilled students of the largest budget with a result.

    Every comparable place counts; where only one is told, it is the first and not the best, because a selection by the
    score on the queries would be optimistic.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        budgets = [table.budget for table in tables if table.entries]
        self.tables = tables
        self.shown = [table for table in tables if table.budget in budgets[:1]]
        self.students = [e for table in self.shown for (row, _), e in table.entries.items() if row[0] == "distilled"]
        self.scratch = pairs_of(self.shown, "scratch")
        # The fine-tuned teacher is the stronger baseline; the frozen one stands in where it was not trained.
        self.teacher = pairs_of(self.shown, "teacher_finetuned") or pairs_of(self.shown, "teacher_frozen")
        compared = {id(pair.ours): pair.ours for pair in [*self.scratch, *self.teacher]} or {
            id(entry): entry for entry in self.students[:1]
        }
        self.only = next(iter(compared.values())) if len(compared) == 1 else None  # the one place that is compared

    def headline(self) -> str:
        """The comparison in one sentence, true whichever way the differences fall."""
        if not self.students:
            return f"No distilled student is measured yet: {done_of(self.tables)}."
        budget = self.shown[0].budget
        told = budget and (budget != "paper" or len({table.budget for table in self.tables}) > 1)
        opening = f"At the {budget} budget, the" if told else "The"
        clauses = [_against(self.scratch, "the same student from scratch", self.only)] if self.scratch else []
        if self.teacher:
            name = ARMS[self.teacher[0].theirs.one.arm].lower()
            clauses.append(_against(self.teacher, f"the {name}", self.only))
        macs = [(pair.theirs.one.macs, pair.ours.one.macs) for pair in self.teacher]
        costs = {_times(*both) for both in macs if all(cost > 0 for cost in both)}  # NaN is not
        cost = costs.pop() if len(costs) == 1 else ""
        if self.only is None:
            tail = f", with {cost} that teacher" if cost else ""
            return f"{opening} distilled student is {' and '.join(clauses)}{tail}."
        one, seeds = self.only.one, len(self.only.seeds)
        mean = f" (mean of {seeds} seeds)" if seeds > 1 else ""
        place = f"{score(self.only.mean)} mAP{mean} at {one.bits} bits with {one.framework.upper()}"
        tail = f": {' and '.join(clauses)}" if clauses else "; no baseline is measured yet"
        return f"{opening} distilled student reaches {place}{f', with {cost} its teacher' if cost else ''}{tail}."

    def facts(self) -> list[tuple[str, str]]:
        """What the headline says, as numbers and what they are."""
        done, planned = _counts(self.tables)
        facts = []
        if self.only:
            one = self.only.one
            facts.append((score(self.only.mean), f"{one.metric} of the distilled student, {one.bits} bits"))
        if self.only is None or done < planned:
            facts.append((f"{done} of {planned}", "entries of the comparison are done"))
        if self.scratch:
            mean = signed(fmean(pair.difference for pair in self.scratch))
            facts.append((mean, f"mAP against the same student from scratch{_mean_of(self.scratch)}"))
        if self.teacher and all(pair.theirs.mean > 0 for pair in self.teacher):
            name = ARMS[self.teacher[0].theirs.one.arm].lower()
            kept = fmean(pair.ours.mean / pair.theirs.mean for pair in self.teacher)
            facts.append((_share(kept), f"of the mAP of the {name}{_mean_of(self.teacher)}"))
            for field, what in (("macs", "of its multiply-adds per image"), ("parameters", "of its parameters")):
                both = [(getattr(p.ours.one, field), getattr(p.theirs.one, field)) for p in self.teacher]
                ratios = {_share(ours / theirs) if ours > 0 and theirs > 0 else "" for ours, theirs in both}
                if len(ratios) == 1 and "" not in ratios:  # one number speaks for all settings, or none does
                    facts.append((ratios.pop(), what))
        return facts


def _share(ratio: float) -> str:
    """A ratio in per cent, with a decimal where it is small."""
    return f"{100 * ratio:.0f} %" if ratio >= 0.0995 else f"{100 * ratio:.1f} %"


def _times(theirs: float, ours: float) -> str:
    """How two costs compare, up to the other's name: "4.3x fewer multiply-adds than"."""
    ratio = max(theirs, ours) / min(theirs, ours)
    if ratio < 1.05:
        return "as many multiply-adds as"
    digits = f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"
    return f"{digits}\N{MULTIPLICATION SIGN} {'fewer' if ours < theirs else 'more'} multiply-adds than"


def _mean_of(pairs: Sequence[Pair]) -> str:
    return f", mean of {len(pairs)} settings" if len(pairs) > 1 else ""


def _against(pairs: Sequence[Pair], baseline: str, only: Entry | None) -> str:
    differences = [pair.difference for pair in pairs]
    above, below = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    if len(pairs) == 1:
        verdict = f"{score(abs(differences[0]))} {'above' if above else 'below'}" if above + below else "level with"
        one = pairs[0].ours.one
        over = f" (95% interval over queries {interval_text(pairs[0])})" if pairs[0].interval else ""
        return f"{verdict} {baseline}{over}" + ("" if only else f" at {one.bits} bits with {one.framework.upper()}")
    known = [pair.interval for pair in pairs if pair.interval]
    clear = sum(low > 0 or high < 0 for low, high in known)
    over = f", beyond chance over queries in {clear} of them" if len(known) == len(pairs) else ""
    mean = f"({signed(fmean(differences))} on average{over})"
    for number, word in ((above, "above"), (below, "below"), (len(pairs) - above - below, "level with")):
        if number == len(pairs):
            return f"{word} {baseline} in all {number} settings {mean}"
    return f"above {baseline} in {above} of {len(pairs)} settings {mean}"
