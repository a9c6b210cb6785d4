"""Where each number of the comparison comes from: what all runs share, and for each cell its seeds and its commands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from distilhash.experiments.document import facts_table
from distilhash.experiments.matrix import BUDGETS, DATASETS, Column, Entry, Row, Table, settings_apart
from distilhash.experiments.results import ARMS, MISSING, score, whole
from distilhash.experiments.svg import element
from distilhash.experiments.trials import Pick, Trial

_MEASURED = """Every query is compared, by the Hamming distance between codes, with every image of the database.
Average precision is taken over the ranking to the depth that the metric names, and averaged over the queries. Short
codes put many images at the same distance, and nothing says which comes first: the expected value is the mean over all
orders of such ties, in closed form; the stable one leaves them in the order of the database. P@r≤2 is the share of
relevant images within two bits of the query; a query with no image that near counts as zero."""


def anchor(number: int, table: Table, row: Row, column: Column) -> str:
    """The id of a cell's record on the page; ``number`` is the table's place."""
    return f"run-{number}-{table.rows.index(row)}-{table.columns.index(column)}"


def provenance(tables: Sequence[Table]) -> str:
    """The section: how it was measured, then each table's shared settings and the record of every cell."""
    prose = element("div", element("p", escape(" ".join(_MEASURED.split()))), class_="prose")
    return prose + "".join(_of_table(table, number) for number, table in enumerate(tables))


def _of_table(table: Table, number: int) -> str:
    places = [(row, column) for column in table.columns for row in table.rows if (row, column) in table.entries]
    if not places:
        return ""
    entries = [table.entries[place] for place in places]
    cells = [cell for entry in entries for cell in entry.cells]
    shared, apart = settings_apart(entries)
    about = [
        ("protocol", f"{DATASETS.get(table.dataset, table.dataset)}, {table.protocol}; {table.metric}"),
        ("budget", BUDGETS.get(table.budget, table.budget)),
        ("seeds", ", ".join(map(str, sorted({cell.seed for cell in cells})))),
        ("machine", _each(cell.machine for cell in cells)),
        ("training time", f"{whole(math.fsum(c.seconds for c in cells if math.isfinite(c.seconds)))} seconds in all"),
    ]
    records = "".join(
        _record(table.entries[place], anchor(number, table, *place), apart[id(table.entries[place])])
        for place in places
    )
    facts = facts_table([(name, text) for name, text in about if text], f"What every cell of {table.name} shares")
    settings = facts_table(list(shared.items()), f"Settings that every cell of {table.name} shares")
    first = element("details", element("summary", "Settings that every cell shares") + element("div", settings))
    heading = element("h3", escape(table.name))
    return heading + facts + element("div", (first if shared else "") + records, class_="records card")


def _record(entry: Entry, key: str, apart: Mapping[str, str]) -> str:
    """One cell, folded: a link to its inside unfolds it."""
    one = entry.one
    dot = element("i", "", class_=f"c-{one.arm}", aria_hidden="true")
    name = f"{ARMS[one.arm]}, {one.framework.upper()}, {one.bits} bits"
    value = element("span", escape(score(entry.mean)))
    about = [
        ("backbone", one.backbone),
        ("its own settings", ", ".join(f"{name} {text}" for name, text in apart.items())),
        ("machine", _each(cell.machine for cell in entry.cells)),
    ]
    if entry.mixed:
        about.append(("mind", "the seeds of this cell were run with different settings; those of the lowest are shown"))
    commands = list(dict.fromkeys(cell.command for cell in entry.cells if cell.command))
    inside = _seeds(entry.cells) + facts_table([(n, t) for n, t in about if t], f"Settings of {name}")
    inside += element("pre", escape("\n".join(commands)), tabindex=0) if commands else ""
    return element("details", element("summary", dot + escape(name) + value) + element("div", inside, id=key))


def _seeds(cells: Sequence[Trial]) -> str:
    """Every seed's numbers, a line each; a column that no seed has is left out."""
    columns = [
        ("Seed", [str(cell.seed) for cell in cells]),
        (f"{cells[0].metric}, expected", [score(cell.map) for cell in cells]),
        ("stable", [score(cell.stable_map) for cell in cells]),
        ("P@r≤2", [score(cell.precision_at_radius_2) for cell in cells]),
        ("chosen on validation", [_pick(cell.chosen) for cell in cells]),
        ("selected on test set ‡", [_pick(cell.best_on_test) for cell in cells]),
        ("Seconds", [whole(cell.seconds) for cell in cells]),
    ]
    columns = [(name, texts) for name, texts in columns if set(texts) != {MISSING}]
    head = "".join(element("th", escape(name), scope="col") for name, _ in columns)
    lines = []
    for i in range(len(cells)):
        values = "".join(element("td", escape(texts[i]), data_label=name) for name, texts in columns)
        lines.append(element("tr", values))
    caption = element("caption", "Every seed of this cell", class_="unseen")
    body = element("thead", element("tr", head)) + element("tbody", "".join(lines))
    return element("table", caption + body, class_="seeds")


def _pick(pick: Pick | None) -> str:
    return f"{score(pick.map)}, epoch {pick.epoch}" if pick else MISSING


def _each(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))
