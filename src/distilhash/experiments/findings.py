"""What a comparison finds: each distilled student beside its baselines, in a headline and in a few numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from distilhash.experiments.comparison import Column, Entry, Row, Table, done_of, score, signed
from distilhash.experiments.trials import ARMS, Trial, leaves


class Pair(NamedTuple):
    """A distilled student and a baseline of it, in one column of a table."""

    ours: Entry
    theirs: Entry

    @property
    def difference(self) -> float:
        """Ours minus theirs, in the three digits shown."""
        return round(round(self.ours.mean, 3) - round(self.theirs.mean, 3), 3)


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


def gains_of(table: Table) -> dict[str, dict[Column, float]]:
    """For each student trained both ways: what distillation adds in each column."""
    gains: dict[str, dict[Column, float]] = {}
    for pair in pairs_of([table], "scratch"):
        one = pair.ours.one
        gains.setdefault(one.backbone, {})[one.framework, one.bits] = pair.difference
    return gains


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
        costs = {_times(p.theirs.one.macs, p.ours.one.macs, "multiply-adds") for p in self.teacher if _costs_known(p)}
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
        done, planned = (
            sum(map(len, parts)) for parts in zip(*((t.entries, t.planned) for t in self.tables), strict=True)
        )
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
                ratios = {_ratio(getattr(p.ours.one, field), getattr(p.theirs.one, field)) for p in self.teacher}
                if len(ratios) == 1 and "" not in ratios:  # one number speaks for all settings, or none does
                    facts.append((ratios.pop(), what))
        return facts


def _share(ratio: float) -> str:
    """A ratio in per cent, with a decimal where it is small."""
    return f"{100 * ratio:.0f} %" if ratio >= 0.0995 else f"{100 * ratio:.1f} %"


def _times(theirs: float, ours: float, what: str) -> str:
    """How two costs compare, up to the other's name: "4.3x fewer multiply-adds than"."""
    ratio = max(theirs, ours) / min(theirs, ours)
    if ratio < 1.05:
        return f"as many {what} as"
    digits = f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"
    return f"{digits}\N{MULTIPLICATION SIGN} {'fewer' if ours < theirs else 'more'} {what} than"


def _costs_known(pair: Pair) -> bool:
    return pair.ours.one.macs > 0 and pair.theirs.one.macs > 0  # NaN is not


def _ratio(ours: float, theirs: float) -> str:
    return _share(ours / theirs) if ours > 0 and theirs > 0 else ""


def _mean_of(pairs: Sequence[Pair]) -> str:
    return f", mean of {len(pairs)} settings" if len(pairs) > 1 else ""


def _against(pairs: Sequence[Pair], baseline: str, only: Entry | None) -> str:
    differences = [pair.difference for pair in pairs]
    above, below = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    if len(pairs) == 1:
        verdict = f"{score(abs(differences[0]))} {'above' if above else 'below'}" if above + below else "level with"
        one = pairs[0].ours.one
        return f"{verdict} {baseline}" + ("" if only else f" at {one.bits} bits with {one.framework.upper()}")
    mean = f"({signed(fmean(differences))} on average)"
    for number, word in ((above, "above"), (below, "below"), (len(pairs) - above - below, "level with")):
        if number == len(pairs):
            return f"{word} {baseline} in all {number} settings {mean}"
    return f"above {baseline} in {above} of {len(pairs)} settings {mean}"
