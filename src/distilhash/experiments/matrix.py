"""The paper's comparison as tables: arms as rows, loss and code length as columns, mean and spread over seeds.

A table holds one data set, protocol and budget; numbers of different ones are never pooled. Its grid is what was
planned and what is there, so that a cell that is not done is a dash, and counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from distilhash.experiments.results import ARMS, score, times
from distilhash.experiments.trials import Pick, Trial, leaves

BUDGETS = {
    "paper": "the paper's budget",
    "desktop": "desktop budget",
    "smoke": "smoke budget, a trial of the machinery",
}
DATASETS = {"cifar10": "CIFAR-10", "nuswide": "NUS-WIDE", "mosaics": "Mosaics"}

Row = tuple[str, str]  # arm, backbone; the backbone is empty where none is known yet
Column = tuple[str, int]  # framework, bits


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What was planned, in the order of the tables; what is there beyond it is shown as well."""

    arms: Sequence[str] = ("teacher_finetuned", "teacher_frozen", "distilled", "scratch")
    frameworks: Sequence[str] = ("csq", "dch")
    bits: Sequence[int] = (16, 32, 48, 64)


PAPER = Grid()


@dataclass(frozen=True)
class Entry:
    """The runs that differ in nothing but the seed, in the order of their seeds; at least one."""

    cells: Sequence[Trial]

    @property
    def one(self) -> Trial:
        """The run with the lowest seed."""
        return self.cells[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were run."""
        return tuple(cell.seed for cell in self.cells)

    @property
    def mean(self) -> float:
        """Mean mAP over seeds."""
        return fmean(cell.map for cell in self.cells)

    @property
    def lowest(self) -> float:
        """The lowest mAP of a seed."""
        return min(cell.map for cell in self.cells)

    @property
    def highest(self) -> float:
        """The highest mAP of a seed."""
        return max(cell.map for cell in self.cells)

    @property
    def mixed(self) -> bool:
        """Whether its runs differ in more than the seed after all; the page says so."""
        return len({json.dumps(_settings(cell), sort_keys=True) for cell in self.cells}) > 1

    def mean_of(self, name: str) -> float:
        """Mean over seeds of another number of the cell; NaN where a seed lacks it."""
        values = [getattr(cell, name) for cell in self.cells]
        return fmean(v.map if isinstance(v, Pick) else math.nan if v is None else v for v in values)


class Table(NamedTuple):
    """One data set, protocol and budget."""

    dataset: str
    protocol: str
    budget: str
    metric: str
    rows: list[Row]
    columns: list[Column]
    entries: dict[tuple[Row, Column], Entry]

    @property
    def name(self) -> str:
        """The data and the budget, as a reader knows them."""
        return ", ".join(
            filter(None, [DATASETS.get(self.dataset, self.dataset), self.budget and f"{self.budget} budget"])
        )

    @property
    def planned(self) -> int:
        """Cells of the grid."""
        return len(self.rows) * len(self.columns)

    @property
    def frameworks(self) -> list[str]:
        """The frameworks of the columns, in order."""
        return list(dict.fromkeys(framework for framework, _ in self.columns))

    @property
    def bits(self) -> list[int]:
        """The code lengths of the columns, in order."""
        return sorted({bits for _, bits in self.columns})

    def entries_of(self, row: Row) -> list[Entry | None]:
        """A row's entries in the order of the columns; None where one is not done."""
        return [self.entries.get((row, column)) for column in self.columns]

    def costs(self, row: Row) -> Trial | None:
        """The run whose parameters and multiply-adds stand for a row: the longest code's, which costs most."""
        return max((entry.one for entry in self.entries_of(row) if entry), key=lambda cell: cell.bits, default=None)

    @property
    def seeds(self) -> tuple[int, ...] | None:
        """The seeds of every cell, where all have the same; None where they differ or nothing is done."""
        found = {entry.seeds for entry in self.entries.values()}
        return found.pop() if len(found) == 1 else None


def tables_of(cells: Sequence[Trial], grid: Grid = PAPER) -> list[Table]:
    """The tables, the largest budget first, otherwise as their cells come."""
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for cell in cells:
        groups.setdefault((cell.budget, cell.dataset, cell.protocol), []).append(cell)
    order = {budget: i for i, budget in enumerate(BUDGETS)}
    made = []
    for key in sorted(groups, key=lambda key: order.get(key[0], len(order))):
        done = [cell for cell in groups[key] if cell.done]
        metrics = dict.fromkeys(cell.metric for cell in done or groups[key])
        made += [_table(groups[key], metric, grid) for metric in metrics]
    return made


def done_of(tables: Iterable[Table]) -> str:
    """How much of the plan is there: "18 of 32 cells are done"."""
    done, planned = (sum(counts) for counts in zip(*((len(t.entries), t.planned) for t in tables), strict=True))
    return f"{done} of {planned} cells {'is' if done == 1 else 'are'} done"


def named(row: Row) -> str:
    """An arm and its backbone, as a reader knows them."""
    return ", ".join(filter(None, [ARMS[row[0]], row[1]]))


def short_name(table: Table, row: Row) -> str:
    """An arm's name, with its backbone where the arm has several in this table."""
    return named(row) if sum(arm == row[0] for arm, _ in table.rows) > 1 else ARMS[row[0]]


def settings_apart(entries: Iterable[Entry]) -> tuple[dict[str, str], dict[int, dict[str, str]]]:
    """The settings that all entries share, and for each (by its id) those that set it apart; no seed among either."""
    own = {id(entry): _settings(entry.one) for entry in entries}
    shared = dict(set.intersection(*(set(flat.items()) for flat in own.values()))) if own else {}
    apart = {key: {k: v for k, v in flat.items() if k not in shared} for key, flat in own.items()}
    first = next(iter(own.values()), {})
    return {k: v for k, v in first.items() if k in shared}, apart


def _settings(cell: Trial) -> dict[str, str]:
    flat = leaves(cell.settings)
    flat = {"epochs": f"{cell.epochs}", "input side, pixels": f"{cell.input_size}"} | flat
    return {k: v for k, v in flat.items() if k.rpartition(".")[2] != "seed" and v != "None"}


def _table(cells: Sequence[Trial], metric: str, grid: Grid) -> Table:
    own = [cell for cell in cells if cell.metric == metric or not cell.done]
    arms = [*grid.arms, *(arm for arm in ARMS if arm not in grid.arms and any(cell.arm == arm for cell in own))]
    rows: list[Row] = []
    for arm in arms:
        backbones = dict.fromkeys(cell.backbone for cell in own if cell.arm == arm)
        rows += [(arm, backbone) for backbone in backbones or ("",)]
    frameworks = dict.fromkeys([*grid.frameworks, *(cell.framework for cell in own)])
    bits = sorted({*grid.bits, *(cell.bits for cell in own)})
    runs: dict[tuple[Row, Column], list[Trial]] = {}
    for cell in sorted((cell for cell in own if cell.done), key=lambda cell: cell.seed):
        runs.setdefault(((cell.arm, cell.backbone), (cell.framework, cell.bits)), []).append(cell)
    entries = {place: Entry(together) for place, together in runs.items()}
    first = own[0]
    columns = [(framework, length) for framework in frameworks for length in bits]
    return Table(first.dataset, first.protocol, first.budget, metric, rows, columns, entries)


class Pair(NamedTuple):
    """A distilled student and a rival of it, at one place of a table."""

    ours: Entry
    theirs: Entry

    @property
    def difference(self) -> float:
        """Ours minus theirs, from the three digits that the reader sees."""
        return round(round(self.ours.mean, 3) - round(self.theirs.mean, 3), 3)


def pairs_of(tables: Iterable[Table], rival: str) -> list[Pair]:
    """Each distilled entry beside the rival arm's at the same place.

    From scratch it is the same backbone; a teacher is the one that the student's settings name, or the only one.
    """
    found = []
    for table in tables:
        for (row, column), entry in table.entries.items():
            if row[0] == "distilled":
                other = (rival, row[1]) if rival == "scratch" else _teacher_of(entry.one, table, rival)
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


def first_budget(tables: Sequence[Table]) -> list[Table]:
    """The tables of the largest budget that has a result: what the headline speaks of."""
    budgets = [table.budget for table in tables if table.entries]
    return [table for table in tables if table.budget in budgets[:1]]


def teacher_pairs(tables: Sequence[Table]) -> list[Pair]:
    """The distilled students beside the fine-tuned teacher, or beside the frozen one where no other was run."""
    return pairs_of(tables, "teacher_finetuned") or pairs_of(tables, "teacher_frozen")


def headline(tables: Sequence[Table]) -> str:
    """The comparison in one sentence, true whichever way it falls; every comparable cell counts, none is picked."""
    shown = first_budget(tables)
    scratch, teacher = pairs_of(shown, "scratch"), teacher_pairs(shown)
    students = [entry for table in shown for (row, _), entry in table.entries.items() if row[0] == "distilled"]
    if not students:
        return f"No distilled student is measured yet: {done_of(tables)}."
    several = len({table.budget for table in tables}) > 1
    told = shown[0].budget and (several or shown[0].budget != "paper")
    opening = f"At the {shown[0].budget} budget, the" if told else "The"
    if not scratch and not teacher:
        one = students[0]
        place = f"{one.one.bits} bits with {one.one.framework.upper()}"
        return f"{opening} distilled student reaches {score(one.mean)} mAP at {place}; no rival of it is measured yet."
    clauses = [_against(scratch, "the same student from scratch")] if scratch else []
    if teacher:
        clauses.append(_against(teacher, f"the {ARMS[teacher[0].theirs.one.arm].lower()}"))
    costs = {times(p.theirs.one.macs, p.ours.one.macs, "multiply-adds") for p in teacher if _costs_known(p)}
    cost = f", with {costs.pop()} that teacher" if len(costs) == 1 else ""
    return f"{opening} distilled student is {' and '.join(clauses)}{cost}."


def signed(difference: float) -> str:
    """A difference with its sign: +.112."""
    digits = score(abs(difference))
    return ("±" if digits == ".000" else "+" if difference > 0 else "\N{MINUS SIGN}") + digits


def _costs_known(pair: Pair) -> bool:
    return pair.ours.one.macs > 0 and pair.theirs.one.macs > 0  # NaN is not


def _against(pairs: Sequence[Pair], rival: str) -> str:
    differences = [pair.difference for pair in pairs]
    above, below = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    if len(pairs) == 1:
        digits, place = score(abs(differences[0])), pairs[0].ours.one
        verdict = f"{digits} {'above' if above else 'below'}" if above + below else "level with"
        return f"{verdict} {rival} at {place.bits} bits with {place.framework.upper()}"
    mean = f"({signed(fmean(differences))} on average)"
    for number, word in ((above, "above"), (below, "below"), (len(pairs) - above - below, "level with")):
        if number == len(pairs):
            return f"{word} {rival} in all {number} settings {mean}"
    return f"above {rival} in {above} of {len(pairs)} settings {mean}"
