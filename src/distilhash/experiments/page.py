"""The report of a comparison: one self-contained HTML page, and beside it table.md and trials.csv.

``comparison`` and ``findings`` say what the trials show, and ``charts`` draws; this module selects what is drawn, and
the templates lay out the page. A section appears when it has data. Every number of a table leads to its trials.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from distilhash.errors import DistilhashError
from distilhash.experiments.charts import DASHES, Disc, Line, bubble_chart, line_chart
from distilhash.experiments.comparison import (
    DATASETS,
    MISSING,
    Entry,
    Place,
    Row,
    Table,
    best_of,
    count,
    score,
    settings_apart,
    signed,
    tables_of,
    whole,
)
from distilhash.experiments.findings import Findings, gains_of
from distilhash.experiments.tables import csv_text, markdown_page, note
from distilhash.experiments.trials import ARMS, Curve, Example, Report
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


class Panel(NamedTuple):
    """A chart with its name and its legend or key, drawn for a wide page and again for a phone where it must be."""

    name: str
    lines: Sequence[Line]
    discs: Sequence[Disc]
    draw: Callable[..., Markup]  # of width and height


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
    """The page as text.

    Raises:
        DistilhashError: if there is no trial.
    """
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
        recall=curves(tables, "precision_recall", "recall", (0, 1)),
        nearest=curves(tables, "precision_at_n", "nearest images, N", None),
        training=[_training(*figure) for figure in report.training if _drawn(figure[2])],
        queries=_queries(report),
    )  # fmt: skip


def png_bytes(image_HW3: np.ndarray) -> bytes:
    """A PNG file of one uint8 RGB image."""
    file = io.BytesIO()
    Image.fromarray(image_HW3).save(file, "png")
    return file.getvalue()


@cache
def templates() -> jinja2.Environment:
    """The templates of the report, with the filters and functions that they use; everything is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distilhash.experiments"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"score": score, "signed": signed, "count": count, "whole": whole, "seconds": _seconds,
                            "emphasised": _emphasised, "data_uri": _data_uri}  # fmt: skip
    environment.globals |= {"ARMS": ARMS, "DATASETS": DATASETS, "MISSING": MISSING, "COLUMNS": COLUMNS, "score": score,
                            "best_of": best_of, "settings_apart": settings_apart, "gains_of": gains_of,
                            "anchor": anchor, "layout": layout, "note": note}  # fmt: skip
    return environment


def _emphasised(headline: str) -> Markup:
    return Markup(NUMBER.sub(r"<b>\1</b>", str(escape(headline))))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _seconds(table: Table) -> float:
    return math.fsum(trial.seconds for trial in table.trials if math.isfinite(trial.seconds))


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
    for table in tables:
        for framework in table.frameworks:
            lines = [_over_bits(table, row, framework) for row in table.rows]
            lines = [line for line in lines if any(map(math.isfinite, line.y))]
            if lines and len(table.bits) > 1:
                name = _name(tables, table, framework)
                draw = partial(line_chart, lines, title=f"{table.metric} by bits, {name}", x_label="code length, bits",
                               y_label=f"{table.metric}, expected", x_ticks=table.bits)  # fmt: skip
                panels.append(Panel(name, lines, (), draw))
    return panels


def _over_bits(table: Table, row: Row, framework: str) -> Line:
    entries = [table.entries.get((row, (framework, bits))) for bits in table.bits]
    means = [entry.mean if entry else math.nan for entry in entries]
    spread = [entry.spread if entry else (math.nan, math.nan) for entry in entries]
    return Line(table.short_name(row), table.bits, means, row[0], _dash(table, row), spread)


def trade_off(tables: Sequence[Table]) -> list[Panel]:
    """mAP against multiply-adds at one code length, where there are two networks to compare."""
    panels = []
    for table in tables:
        for framework in table.frameworks:
            bits, entries = _featured(table, framework, lambda entry: entry.one.macs > 0)
            if len(entries) > 1:
                discs = {row: _disc(entry, str(i)) for i, (row, entry) in enumerate(entries.items(), 1)}
                name = f"{_name(tables, table, framework)} · {bits} bits"
                draw = partial(bubble_chart, list(discs.values()), title=f"Quality against cost, {name}",
                               x_label="multiply-adds per image (log scale)", y_label=f"{table.metric}, expected",
                               arrow=_gain(discs))  # fmt: skip
                panels.append(Panel(name, (), list(discs.values()), draw))
    return panels


def _disc(entry: Entry, label: str) -> Disc:
    one = entry.one
    seeds = f"mean of {len(entry.seeds)} seeds" if len(entry.seeds) > 1 else f"seed {entry.seeds[0]}"
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
            return before, disc, f"+{score(round(disc.y, 3) - round(before.y, 3))}"
    return None


def curves(
    tables: Sequence[Table], field: str, x_label: str, x_range: tuple[float, float] | None
) -> tuple[list[Panel], list[Panel]]:
    """A curve of each entry's first seed, for the code length that is shown, and for the others, folded away."""

    def has(entry: Entry) -> bool:
        return any(map(math.isfinite, getattr(entry.one, field)[1]))

    first: list[Panel] = []
    more: list[Panel] = []
    for table in tables:
        for framework in table.frameworks:
            featured, _ = _featured(table, framework, has)
            for bits in table.bits:
                entries = _with(table, framework, bits, has)
                points = {row: getattr(entry.one, field) for row, entry in entries.items()}
                lines = [Line(table.short_name(row), x, y, row[0], _dash(table, row)) for row, (x, y) in points.items()]
                name = f"{_name(tables, table, framework)} · {bits} bits"
                draw = partial(line_chart, lines, title=f"Precision by {x_label}, {name}", x_label=x_label,
                               y_label="precision", x_range=x_range, y_range=(0, 1))  # fmt: skip
                if lines:
                    (first if bits == featured else more).append(Panel(name, lines, (), draw))
    return first, more


def _featured(table: Table, framework: str, has: Callable[[Entry], bool]) -> tuple[int, dict[Row, Entry]]:
    """The code length with the most rows of which this is known, the longest of equals: never the best result."""
    found = {bits: _with(table, framework, bits, has) for bits in table.bits}
    bits = max(table.bits, key=lambda bits: (len(found[bits]), bits))
    return bits, found[bits]


def _with(table: Table, framework: str, bits: int, has: Callable[[Entry], bool]) -> dict[Row, Entry]:
    entries = {row: table.entries.get((row, (framework, bits))) for row in table.rows}
    return {row: entry for row, entry in entries.items() if entry and has(entry)}


def _name(tables: Sequence[Table], table: Table, framework: str) -> str:
    """The framework, and the data where there are several tables."""
    twins = [other for other in tables if other.name == table.name]
    data = table.name + (f", {table.metric}, {table.protocol}" if len(twins) > 1 else "")
    return framework.upper() + (f" · {data}" if len(tables) > 1 else "")


def _dash(table: Table, row: Row) -> tuple[float, ...]:
    """A row's own dashes, whichever rows are beside it; the distilled student's line is whole."""
    order = sorted(table.rows, key=lambda other: list(ARMS).index(other[0]))
    return DASHES[order.index(row) % len(DASHES)]


def _training(title: str, y_label: str, found: Sequence[Curve]) -> Panel:
    """Curves by epoch: those of an arm in its colour, others in neutral ones."""
    lines = [
        Line(curve.name, curve.x, curve.y, curve.arm or f"neutral-{i % 4 + 1}", DASHES[i % len(DASHES)])
        for i, curve in enumerate(_drawn(found))
    ]
    return Panel(title, lines, (), partial(line_chart, lines, title=title, x_label="epoch", y_label=y_label))


def _drawn(found: Sequence[Curve]) -> list[Curve]:
    return [curve for curve in found if any(map(math.isfinite, curve.y))]


def _queries(report: Report) -> list[tuple[bytes, str, list[tuple[str, Example]]]]:
    """Each query image once, with its label and what every arm finds for it."""
    queries: dict[tuple[bytes, str], list[tuple[str, Example]]] = {}
    for arm, examples in report.examples:
        for example in examples:
            queries.setdefault((example.query_png, example.label), []).append((arm, example))
    return [(png, label, found) for (png, label), found in queries.items()]
