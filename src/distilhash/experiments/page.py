"""The report of a comparison: one self-contained HTML page, and beside it table.md and trials.csv.

``comparison`` says what the trials show, and ``charts`` draws; this module selects what is drawn, and the templates lay
out the page. A section appears when it has data. Every number of a table leads to its trials.
"""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape

from distilhash.errors import DistilhashError
from distilhash.experiments.charts import DASHES, Disc, Line, bubble_chart, line_chart
from distilhash.experiments.comparison import (
    DATASETS,
    MISSING,
    Entry,
    Findings,
    Place,
    Row,
    Table,
    best_of,
    count,
    difference,
    gains_of,
    interval_text,
    score,
    settings_apart,
    signed,
    tables_of,
    whole,
)
from distilhash.experiments.tables import csv_text, markdown_page, note
from distilhash.experiments.trials import ARMS, Grid, Trial
from distilhash.files import write_atomically

# What the headline sets in bold: .573, with its sign where it has one, and 3.8 times.
NUMBER = re.compile("(?<![\\w.])([+\N{MINUS SIGN}±]?\\d?\\.\\d{3}|\\d+(?:\\.\\d)?\N{MULTIPLICATION SIGN})(?!\\w)")

# Heading, its second line, how a value is written, whether more is better, the field of Trial.
COLUMNS = (
    ("mAP", "stable", score, True, "stable_map"),
    ("P@r≤2", "", score, True, "precision_at_radius_2"),
    ("Parameters", "", count, False, "parameters"),
    ("MACs", "per image", count, False, "macs"),
    ("Seconds", "training", whole, False, "seconds"),
)


class Neighbour(NamedTuple):
    """One image that a search found."""

    png: bytes
    label: str
    distance: int  # bits
    relevant: bool


class Query(NamedTuple):
    """A query image, and what each arm finds nearest to it, nearest first."""

    png: bytes
    label: str
    found: Sequence[tuple[str, Sequence[Neighbour]]]


class Report(NamedTuple):
    """Everything that the page shows; a part that is empty is left out of it."""

    title: str
    trials: Sequence[Trial]
    subtitle: str = ""  # the argument, in a sentence or two
    grid: Grid = Grid()  # what was planned; entries of it that are not done are shown as missing
    training: Sequence[tuple[str, str, Sequence[Line]]] = ()  # figure title, name of y, lines by epoch
    queries: Sequence[Query] = ()
    provenance: Mapping[str, str] = {}  # "command" is set apart as code
    notes: Sequence[str] = ()  # sentences for "how it was measured"


class Panel(NamedTuple):
    """A chart with its name and its legend or key, drawn for a wide page and again for a phone where it must be."""

    name: str
    draw: Callable[..., Markup]  # of width and height
    lines: Sequence[Line] = ()
    discs: Sequence[Disc] = ()


def write_report(report: Report, folder: str | os.PathLike[str]) -> None:
    """Write report.html, table.md and trials.csv, each whole or not at all.

    Raises:
        DistilhashError: if there is no trial; then nothing is written.
    """
    texts = {
        "report.html": page(report),
        "table.md": markdown_page(tables_of(report.trials, report.grid), report.title),
        "trials.csv": csv_text(report.trials),
    }
    for name, text in texts.items():
        write_atomically(Path(folder) / name, text)


def page(report: Report) -> str:
    """The page as text; DistilhashError if there is no trial."""
    if not report.trials:
        raise DistilhashError("a report needs at least one trial")
    tables = tables_of(report.trials, report.grid)
    return templates().get_template("report.html.j2").render(
        report=report,
        tables=tables,
        findings=Findings(tables),
        several_seeds=any(len(entry.trials) > 1 for table in tables for entry in table.entries.values()),
        by_bits=against_bits(tables),
        costs=trade_off(tables),
        recall=curves(tables, "curves", "recall", (0, 1)),
        nearest=curves(tables, "precision_at_n", "nearest images, N", None),
        training=training(report),
        queries=report.queries,
    )  # fmt: skip


@cache
def templates() -> jinja2.Environment:
    """The templates of the report, with the filters and functions that they use; everything is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distilhash.experiments"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"score": score, "signed": signed, "count": count, "whole": whole, "emphasised": _emphasised,
                            "data_uri": _data_uri}  # fmt: skip
    environment.globals |= {"ARMS": ARMS, "DATASETS": DATASETS, "MISSING": MISSING, "COLUMNS": COLUMNS, "score": score,
                            "best_of": best_of, "settings_apart": settings_apart, "gains_of": gains_of,
                            "interval_text": interval_text,
                            "anchor": anchor, "layout": layout, "note": note}  # fmt: skip
    return environment


def _emphasised(headline: str) -> Markup:
    return Markup(NUMBER.sub(r"<b>\1</b>", str(escape(headline))))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def anchor(number: int, table: Table, place: Place) -> str:
    """The id of an entry's record on the page; ``number`` is the table's place."""
    return f"trial-{number}-{table.rows.index(place[0])}-{table.columns.index(place[1])}"


def layout(
    panels: Sequence[Panel], tall: float = 1.0
) -> tuple[int, bool, list[tuple[Panel, list[tuple[str, Markup]]]]]:
    """Columns that the panels fill, whether one legend serves all, and each panel with its drawings.

    The letters of a chart keep their size only if it is shown about as wide as it was drawn: wide charts are drawn
    again for a phone, and the page shows one of the two.
    """
    columns = 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3
    phone = (310, 260 * tall)
    wide = {1: (820, 330 * tall), 2: (430, 300 * tall), 3: phone}[columns]
    sizes = {"wide": wide, "narrow": phone} if columns < 3 else {"": phone}
    legends = {tuple((line.name, line.colour, line.dash) for line in panel.lines) for panel in panels}
    shared = len(panels) > 1 and len(legends) == 1 and bool(panels[0].lines)
    return columns, shared, [
        (panel, [(kind, panel.draw(width=width, height=height)) for kind, (width, height) in sizes.items()])
        for panel in panels
    ]  # fmt: skip


def against_bits(tables: Sequence[Table]) -> list[Panel]:
    """mAP over code lengths, a line for each row and a panel for each framework; none where there is one length."""
    panels = []
    for table, framework in _frames(tables):
        lines = [_over_bits(table, row, framework) for row in table.rows]
        lines = [line for line in lines if any(map(math.isfinite, line.y))]
        if lines and len(table.bits) > 1:
            name = _name(tables, table, framework)
            draw = partial(line_chart, lines, title=f"{table.metric} by bits, {name}", x_label="code length, bits",
                           y_label=f"{table.metric}, expected", x_ticks=table.bits)  # fmt: skip
            panels.append(Panel(name, draw, lines))
    return panels


def _over_bits(table: Table, row: Row, framework: str) -> Line:
    entries = [table.entries.get((row, (framework, bits))) for bits in table.bits]
    means = [entry.mean if entry else math.nan for entry in entries]
    spread = [entry.spread if entry else (math.nan, math.nan) for entry in entries]
    return Line(table.short_name(row), table.bits, means, row[0], _dash(table, row), spread)


def trade_off(tables: Sequence[Table]) -> list[Panel]:
    """mAP against multiply-adds at one code length, where there are two networks to compare."""
    panels = []
    for table, framework in _frames(tables):
        bits, found = _known(table, framework, lambda entry: entry.one.macs > 0)
        if len(found[bits]) > 1:
            discs = {row: _disc(entry, str(i)) for i, (row, entry) in enumerate(found[bits].items(), 1)}
            name = f"{_name(tables, table, framework)} · {bits} bits"
            draw = partial(bubble_chart, list(discs.values()), title=f"Quality against cost, {name}",
                           x_label="multiply-adds per image (log scale)", y_label=f"{table.metric}, expected",
                           arrow=_gain(discs))  # fmt: skip
            panels.append(Panel(name, draw, discs=list(discs.values())))
    return panels


def _disc(entry: Entry, label: str) -> Disc:
    one = entry.one
    seeds = f"mean of {len(entry.seeds)} seeds" if len(entry.seeds) > 1 else f"seed {one.seed}"
    name = f"{ARMS[one.arm]}, {one.backbone}"
    told = [name, f"{one.metric} {score(entry.mean)}", f"{count(one.macs)} multiply-adds",
            f"{count(one.parameters)} parameters", seeds]  # fmt: skip
    figures = f"{score(entry.mean)} · {count(one.parameters)}"
    return Disc(one.macs, entry.mean, one.parameters, one.arm, label, name, figures, "\n".join(told))


def _gain(discs: Mapping[Row, Disc]) -> tuple[Disc, Disc, str] | None:
    """From a student from scratch up to the same one distilled; the first such pair that rises."""
    for (arm, backbone), disc in discs.items():
        before = discs.get(("scratch", backbone))
        if arm == "distilled" and before and disc.y > before.y:
            return before, disc, f"+{score(difference(disc.y, before.y))}"
    return None


def curves(
    tables: Sequence[Table], field: str, x_label: str, x_range: tuple[float, float] | None
) -> tuple[list[Panel], list[Panel]]:
    """A curve of each entry's first seed, for the code length that is shown, and for the others, folded away."""
    first: list[Panel] = []
    more: list[Panel] = []
    for table, framework in _frames(tables):
        shown, found = _known(table, framework, lambda entry: bool(getattr(entry.one, field).x))
        for bits, entries in found.items():
            points = {row: getattr(entry.one, field) for row, entry in entries.items()}
            lines = [Line(table.short_name(row), by.x, by.precision, row[0], _dash(table, row))
                     for row, by in points.items()]  # fmt: skip
            name = f"{_name(tables, table, framework)} · {bits} bits"
            draw = partial(line_chart, lines, title=f"Precision by {x_label}, {name}", x_label=x_label,
                           y_label="precision", x_range=x_range, y_range=(0, 1))  # fmt: skip
            if lines:
                (first if bits == shown else more).append(Panel(name, draw, lines))
    return first, more


def training(report: Report) -> list[Panel]:
    """Curves by epoch; a figure without one is left out."""
    return [
        Panel(title, partial(line_chart, lines, title=title, x_label="epoch", y_label=y_label), lines)
        for title, y_label, lines in report.training if lines
    ]  # fmt: skip


def _frames(tables: Sequence[Table]) -> list[tuple[Table, str]]:
    return [(table, framework) for table in tables for framework in table.frameworks]


def _known(table: Table, framework: str, has: Callable[[Entry], bool]) -> tuple[int, dict[int, dict[Row, Entry]]]:
    """The entries by code length that have something, and the length to show: of the most rows, then the longest.

    It is never chosen by the results.
    """
    found = {}
    for bits in table.bits:
        entries = {row: table.entries.get((row, (framework, bits))) for row in table.rows}
        found[bits] = {row: entry for row, entry in entries.items() if entry and has(entry)}
    return max(found, key=lambda bits: (len(found[bits]), bits)), found


def _name(tables: Sequence[Table], table: Table, framework: str) -> str:
    """The framework, and the data where there are several tables."""
    if len(tables) == 1:
        return framework.upper()
    twins = sum(other.name == table.name for other in tables) > 1
    return f"{framework.upper()} · {table.name}" + (f", {table.metric}, {table.protocol}" if twins else "")


def _dash(table: Table, row: Row) -> tuple[float, ...]:
    """A row's own dashes, whichever rows are beside it; the distilled student's line is whole."""
    order = sorted(table.rows, key=lambda other: list(ARMS).index(other[0]))
    return DASHES[order.index(row) % len(DASHES)]
