"""The figures of the comparison: mAP against bits, quality against cost, precision against recall and against depth.

A figure holds the arms of one table and one loss. Curves and costs have one code length; the one that is shown at first
is that with the most arms, and the longest of those: never the one with the best result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from distilhash.experiments.bubbles import Arrow, Disc, bubble_chart
from distilhash.experiments.figures import LONGEST_NAME, key_of, panels
from distilhash.experiments.matrix import Entry, Row, Table, named, short_name
from distilhash.experiments.results import ARMS, count, score
from distilhash.experiments.svg import DASHES, Curve, element, legend, line_chart
from distilhash.experiments.trials import Trial

Figure = tuple[str, str, Callable[[float, float, str], str]]  # name, key, what draws it
Axis = Callable[[Trial], tuple[Sequence[float], Sequence[float]]]  # a cell's curve


def against_bits(tables: Sequence[Table]) -> str:
    """A line for each arm over code lengths, whiskers from the lowest seed to the highest; a panel for each loss."""
    figures = []
    for table in tables:
        for framework in table.frameworks:
            curves = [_over_bits(table, row, framework) for row in table.rows]
            curves = [curve for curve in curves if any(map(math.isfinite, curve.y))]
            if curves:
                name = _name(tables, table, framework)
                figures.append((name, legend(curves), partial(_bits_chart, curves, name, table)))
    return panels(figures)


def trade_off(tables: Sequence[Table]) -> str:
    """mAP against multiply-adds at one code length, the area of a disc proportional to parameters."""
    figures = []
    for table in tables:
        for framework in table.frameworks:
            bits, entries = _featured(table, framework, lambda entry: entry.one.macs > 0)
            if entries:
                discs = {row: _disc(entry, str(i)) for i, (row, entry) in enumerate(entries.items(), 1)}
                key = key_of([replace(disc, label=_lines(entries[row])) for row, disc in discs.items()])
                name = f"{_name(tables, table, framework)} · {bits} bits"
                figures.append((name, key, partial(_bubbles, list(discs.values()), _gain(discs), name, table)))
    return panels(figures, tall=1.2)


def precision_recall(tables: Sequence[Table]) -> str:
    """Precision against recall for each code length, the featured one at full size."""
    return _curves(tables, lambda cell: cell.precision_recall, "recall", (0, 1))


def precision_at_n(tables: Sequence[Table]) -> str:
    """Precision among the N nearest for each code length, the featured one at full size."""
    return _curves(tables, lambda cell: cell.precision_at_n, "nearest images, N", None)


def _name(tables: Sequence[Table], table: Table, framework: str) -> str:
    """The loss, and the data where there are several tables."""
    twins = [other for other in tables if other.name == table.name]
    data = table.name + (f", {table.metric}, {table.protocol}" if len(twins) > 1 else "")
    return framework.upper() + (f" · {data}" if len(tables) > 1 else "")


def _dash(table: Table, row: Row) -> str:
    """An arm's own dashes, whichever arms are beside it; the distilled student's line is whole."""
    order = sorted(table.rows, key=lambda other: list(ARMS).index(other[0]))
    return DASHES[order.index(row) % len(DASHES)]


def _over_bits(table: Table, row: Row, framework: str) -> Curve:
    entries = [table.entries.get((row, (framework, bits))) for bits in table.bits]
    return Curve(
        short_name(table, row),
        table.bits,
        [entry.mean if entry else math.nan for entry in entries],
        row[0],
        _dash(table, row),
        [(entry.lowest, entry.highest) if entry else (math.nan, math.nan) for entry in entries],
    )


def _bits_chart(curves: Sequence[Curve], name: str, table: Table, width: float, height: float, kind: str) -> str:
    low, high = table.bits[0], table.bits[-1]
    beside = 0.06 * (high - low) or 1
    return line_chart(
        curves, title=f"{table.metric} against bits, {name}", x_label="length of a code, bits",
        y_label=f"{table.metric}, expected", x_range=(low - beside, high + beside), x_marks=table.bits,
        width=width, height=height, kind=kind,
    )  # fmt: skip


def _featured(table: Table, framework: str, has: Callable[[Entry], bool]) -> tuple[int, dict[Row, Entry]]:
    """The code length with the most arms of which this is known, the longest of equals, and its entries."""
    found = {bits: _with(table, framework, bits, has) for bits in table.bits}
    bits = max(table.bits, key=lambda bits: (len(found[bits]), bits))
    return bits, found[bits]


def _with(table: Table, framework: str, bits: int, has: Callable[[Entry], bool]) -> dict[Row, Entry]:
    entries = {row: table.entries.get((row, (framework, bits))) for row in table.rows}
    return {row: entry for row, entry in entries.items() if entry and has(entry)}


def _lines(entry: Entry) -> tuple[str, str, str]:
    one = entry.one
    short = one.backbone if len(one.backbone) <= LONGEST_NAME else one.backbone[: LONGEST_NAME - 1] + "…"
    return ARMS[one.arm], short, f"{score(entry.mean)} · {count(one.parameters)}"


def _disc(entry: Entry, label: str) -> Disc:
    one = entry.one
    note = [named((one.arm, one.backbone)), f"{one.metric} {score(entry.mean)}", f"{count(one.macs)} multiply-adds",
            f"{count(one.parameters)} parameters", _seeds(entry)]  # fmt: skip
    area = one.parameters if math.isfinite(one.parameters) else 0.0
    return Disc(x=one.macs, y=entry.mean, area=area, label=(label,), colour=one.arm, note="\n".join(note))


def _seeds(entry: Entry) -> str:
    """Which seeds the number is of."""
    return f"mean of {len(entry.seeds)} seeds" if len(entry.seeds) > 1 else f"seed {entry.seeds[0]}"


def _gain(discs: dict[Row, Disc]) -> Arrow | None:
    """From a student from scratch up to the same one distilled; the first such pair that rises."""
    for (arm, backbone), disc in discs.items():
        before = discs.get(("scratch", backbone))
        if arm == "distilled" and before and disc.y > before.y:
            return before, disc, f"+{score(round(disc.y, 3) - round(before.y, 3))}"
    return None


def _bubbles(
    discs: Sequence[Disc], arrow: Arrow | None, name: str, table: Table, width: float, height: float, kind: str
) -> str:
    return bubble_chart(
        discs, title=f"Quality against cost, {name}", x_label="multiply-adds per image (log scale)",
        y_label=f"{table.metric}, expected", arrow=arrow, width=width, height=height, kind=kind,
    )  # fmt: skip


def _curves(tables: Sequence[Table], axis: Axis, x_label: str, x_range: tuple[float, float] | None) -> str:
    """Featured panels, and the other code lengths folded away below them."""

    def has(entry: Entry) -> bool:
        return any(map(math.isfinite, axis(entry.one)[1]))

    first: list[Figure] = []
    more: list[Figure] = []
    for table in tables:
        for framework in table.frameworks:
            featured, _ = _featured(table, framework, has)
            for bits in table.bits:
                entries = _with(table, framework, bits, has)
                curves = [
                    Curve(short_name(table, row), *axis(e.one), row[0], _dash(table, row)) for row, e in entries.items()
                ]
                name = f"{_name(tables, table, framework)} · {bits} bits"
                figure = (name, legend(curves), partial(_chart, curves, name, x_label, x_range))
                if curves:
                    (first if bits == featured else more).append(figure)
    rest = element("details", element("summary", "The other code lengths") + panels(more)) if more else ""
    return panels(first) + rest


def _chart(
    curves: Sequence[Curve], name: str, x_label: str, x_range: tuple[float, float] | None,
    width: float, height: float, kind: str,
) -> str:  # fmt: skip
    return line_chart(
        curves, title=f"Precision by {x_label}, {name}", x_label=x_label, y_label="precision", x_range=x_range,
        y_range=(0, 1), width=width, height=height, kind=kind,
    )  # fmt: skip
