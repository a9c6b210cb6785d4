"""The tables of the comparison's page: arms as rows, loss and bits as columns, every number a link to its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import NamedTuple

from distilhash.experiments.matrix import Column, Entry, Row, Table, pairs_of, signed
from distilhash.experiments.matrix_provenance import anchor
from distilhash.experiments.matrix_text import note
from distilhash.experiments.results import ARMS, MISSING, count, score
from distilhash.experiments.svg import element

_TESTED = """Selected on the test set: the epoch was picked by the very queries that it is measured on, as published
code does. These numbers are optimistic and stand here for comparison with such numbers only."""


class _Shown(NamedTuple):
    """What stands in one cell of a table."""

    value: float  # what decides which student is better
    main: str
    small: list[str]  # lines below it
    told: str  # when pointed at


def results(table: Table, number: int) -> str:
    """The mean of every cell, its spread, and what distilling adds; ``number`` is the table's place on the page."""

    def shown(entry: Entry) -> _Shown:
        several = len(entry.cells) > 1
        small = [f"{score(entry.lowest)}\N{EN DASH}{score(entry.highest)}"] if several else []
        small += [f"n = {len(entry.cells)}"] if table.seeds is None else []
        return _Shown(entry.mean, score(entry.mean) + ("†" if entry.mixed else ""), small, _told(entry))

    return _matrix(table, number, f"{table.metric}, expected", table.entries, shown, _gains(table), note(table))


def _told(entry: Entry) -> str:
    """Protocol, seeds, settings, machine and command in a few lines."""
    one = entry.one
    lines = [f"{one.dataset}, {one.protocol}", f"seeds: {', '.join(map(str, entry.seeds))}"]
    lines += [f"{one.budget} budget"] if one.budget else []
    lines += [f"{one.epochs} epochs"] if one.epochs is not None else []
    return "\n".join([*lines, *filter(None, [one.machine, one.command])])


def epochs(table: Table, number: int) -> str:
    """What the epoch chosen on validation images gives, and the one selected on the test set, marked as such."""
    parts = []
    for name, heading, warned in (
        ("chosen", "chosen on validation", ""),
        ("best_on_test", "selected on test set", "‡"),
    ):
        known = {
            place: entry
            for place, entry in table.entries.items()
            if all(getattr(cell, name) is not None for cell in entry.cells)
        }

        def shown(entry: Entry, name: str = name, warned: str = warned) -> _Shown:
            mean, picks = entry.mean_of(name), [getattr(cell, name).epoch for cell in entry.cells]
            difference = signed(round(round(mean, 3) - round(entry.mean, 3), 3))
            told = f"last epoch {score(entry.mean)}; picked: {', '.join(f'epoch {epoch}' for epoch in picks)}"
            return _Shown(
                mean, score(mean) + warned, [difference], ("selected on the test set; " if warned else "") + told
            )

        if known:
            below = f"‡ {' '.join(_TESTED.split())}" if warned else ""
            what = f"{table.metric}, epoch {heading}"
            parts.append(_matrix(table, number, what, known, shown, "", below, "tested" if warned else "choice"))
    return "".join(parts)


def _matrix(
    table: Table,
    number: int,
    what: str,
    entries: Mapping[tuple[Row, Column], Entry],
    shown: Callable[[Entry], _Shown],
    foot: str,
    below: str,
    kind: str = "",
) -> str:
    """Arms as rows, loss and bits as columns; what is below it says what its numbers are.

    ``kind`` is a class of the page: "choice" and "tested" leave out the costs, "tested" the praise as well.
    """
    length = len(table.bits)
    losses = "".join(
        element("th", escape(framework.upper()), colspan=length, scope="colgroup", class_="loss")
        for framework in table.frameworks
    )
    starts = [i % length == 0 for i in range(len(table.columns))]
    heads = "".join(
        element("th", f"{bits}<small>bits</small>", scope="col", class_="first" if start else "")
        for (_, bits), start in zip(table.columns, starts, strict=True)
    )
    arm = element("th", "Arm", scope="col", rowspan=2, class_="text")
    head = element("thead", element("tr", arm + losses) + element("tr", heads))
    best = _better_students(table, {k: shown(e).value for k, e in entries.items()}) if kind != "tested" else set()
    rows = []
    for row in table.rows:
        cells = [_row_head(table, row, with_costs=not kind)]
        for column, start in zip(table.columns, starts, strict=True):
            label = f"{column[0].upper()} {column[1]}"
            classes = ["first"] if start else []
            entry = entries.get((row, column))
            if entry is None:
                content = MISSING + element("span", " not done", class_="unseen")
                classes.append("none")
            else:
                _, main, small, told = shown(entry)
                link = element("a", escape(main), href=f"#{anchor(number, table, row, column)}", title=told)
                content = element("span", link) + "".join(element("small", escape(line)) for line in small)
                classes += ["best"] if (row, column) in best else []
            cells.append(element("td", content, class_=" ".join(classes), data_label=label))
        rows.append(element("tr", "".join(cells), style=f"--bits:{length}"))
    caption = element("caption", escape(f"{what}, {table.name}"), class_="unseen")
    body = element("tbody", "".join(rows) + foot)
    drawn = element("table", caption + head + body, class_=f"arms matrix {kind}".strip())
    told = element("span", escape(f"{what}; protocol {table.protocol}"), class_=kind)
    title = element("h3", escape(table.name) + told)
    region = element("div", drawn, class_="card scroll", tabindex=0, role="region", aria_label=f"{what}, {table.name}")
    return title + region + (element("p", escape(below), class_="note") if below else "")


def _row_head(table: Table, row: Row, *, with_costs: bool) -> str:
    dearest = table.costs(row) if with_costs else None
    costs = f"{count(dearest.parameters)} parameters, {count(dearest.macs)} MACs" if dearest else ""
    small = "".join(element("small", escape(text)) for text in (row[1], costs) if text)
    name = element("i", "", aria_hidden="true") + escape(ARMS[row[0]])
    return element("th", name + small, scope="row", class_=f"c-{row[0]}")


def _better_students(table: Table, values: Mapping[tuple[Row, Column], float]) -> set[tuple[Row, Column]]:
    """Where a student is better than every other student of its column, in the digits shown."""
    found = set()
    for column in table.columns:
        students = [row for row in table.rows if row[0] in ("distilled", "scratch") and (row, column) in values]
        ranked = sorted(students, key=lambda row: -values[row, column])
        digits = [score(values[row, column]) for row in ranked]
        if len(digits) > 1 and digits[0] != digits[1]:
            found.add((ranked[0], column))
    return found


def _gains(table: Table) -> str:
    """A line for each student that was trained both ways: what distilling adds to it."""
    gains = {(p.ours.one.backbone, p.ours.one.framework, p.ours.one.bits): p for p in pairs_of([table], "scratch")}
    lines = []
    for backbone in dict.fromkeys(backbone for backbone, _, _ in gains):
        cells = [element("th", "Gain of distilling" + element("small", escape(backbone)), scope="row")]
        for framework, bits in table.columns:
            pair = gains.get((backbone, framework, bits))
            text = escape(signed(pair.difference)) if pair else MISSING
            first = "first" if bits == table.bits[0] else ""
            cells.append(element("td", element("span", text), class_=first, data_label=f"{framework.upper()} {bits}"))
        lines.append(element("tr", "".join(cells), class_="gains", style=f"--bits:{len(table.bits)}"))
    return "".join(lines)
