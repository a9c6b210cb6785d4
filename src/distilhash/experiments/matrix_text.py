"""The comparison as text: Markdown tables for people, one CSV line for each run for everything else."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distilhash.experiments.matrix import PAPER, Entry, Grid, Table, done_of, tables_of
from distilhash.experiments.results import ARMS, MISSING, count
from distilhash.experiments.trials import Trial, read_trials


def markdown_table(cells: Iterable[Mapping[str, Any]], grid: Grid = PAPER) -> str:
    """Each table as Markdown, with what its numbers are below it. Errors: DistilhashError for an unsound cell."""
    return "\n".join(map(_markdown, tables_of(read_trials(cells), grid)))


def markdown_page(tables: Sequence[Table], title: str) -> str:
    """The tables under a title, and after each what choosing the epoch would have changed."""
    parts = [f"# {_plain(title)}\n"]
    for table in tables:
        parts += [_markdown(table)] + [text for text in [_markdown_epochs(table)] if text]
    return "\n".join(parts)


def csv_text(cells: Iterable[Trial]) -> str:
    """One line for each run that is done, every number of it in full digits; what was not measured is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["dataset", "protocol", "budget", "arm", "backbone", "framework", "bits", "seed", "metric",
         "expected_map_last_epoch", "stable_map_last_epoch", "validation_chosen_epoch", "validation_chosen_map",
         "test_selected_epoch", "test_selected_map", "precision_at_radius_2", "parameters", "macs", "seconds",
         "input_size", "epochs", "machine", "command", "settings"]
    )  # fmt: skip
    for c in cells:
        if c.done:
            picks = [*(c.chosen or ("", "")), *(c.best_on_test or ("", ""))]
            values = [c.dataset, c.protocol, c.budget, c.arm, c.backbone, c.framework, c.bits, c.seed, c.metric, c.map,
                      c.stable_map, *picks, c.precision_at_radius_2, c.parameters, c.macs, c.seconds, c.input_size,
                      c.epochs, c.machine, c.command, json.dumps(c.settings, sort_keys=True)]  # fmt: skip
            writer.writerow([_csv(value) for value in values])
    return file.getvalue()


def _markdown(table: Table) -> str:
    heads = [f"{_plain(framework.upper())} {bits}" for framework, bits in table.columns]
    lines = [f"**{_plain(table.name)}**: {table.metric}, protocol {_plain(table.protocol)}", ""]
    lines += _head(["arm", "backbone", *heads, "parameters", "multiply-adds"])
    for row in table.rows:
        dearest = table.costs(row)
        costs = [count(dearest.parameters), count(dearest.macs)] if dearest else [MISSING, MISSING]
        own = [_markdown_entry(entry, table) for entry in table.entries_of(row)]
        lines.append(_line([ARMS[row[0]], row[1] or MISSING, *own, *costs]))
    return "\n".join([*lines, "", _plain(note(table))]) + "\n"


def _markdown_entry(entry: Entry | None, table: Table) -> str:
    if entry is None:
        return MISSING
    several = len(entry.cells) > 1
    details = [f"{entry.lowest:.3f} to {entry.highest:.3f}"] if several else []
    if table.seeds is None:
        details.append(f"{len(entry.cells)} seed{'s' if several else ''}")
    marks = "†" if entry.mixed else ""
    return f"{entry.mean:.3f}{marks}" + (f" ({', '.join(details)})" if details else "")


def note(table: Table) -> str:
    """What the numbers of a table are, in a few sentences."""
    entries = list(table.entries.values())
    parts = [f"{done_of([table])}" + (f"; {MISSING} is not done yet" if len(entries) < table.planned else "")]
    parts.append("expected AP (ties in random order) of the last epoch; costs at the longest code")
    if any(len(entry.cells) > 1 for entry in entries):
        parts.append("mean over seeds (lowest to highest)")
    if table.seeds:
        parts.append(f"seed{'s' if len(table.seeds) > 1 else ''} {', '.join(map(str, table.seeds))}")
    if entries and all(len(entry.cells) == 1 for entry in entries):
        parts.append("one seed, so a small difference may be chance")
    machines = sorted({cell.machine for entry in entries for cell in entry.cells if cell.machine})
    if machines:
        parts.append(f"run on {' and '.join(machines)}")
    if any(entry.mixed for entry in entries):
        parts.append("† its seeds were run with different settings")
    return "; ".join(parts) + "."


def _markdown_epochs(table: Table) -> str:
    """What another choice of the epoch gives, a line for each cell that knows; empty where none does."""
    places = [(row, column) for row in table.rows for column in table.columns if (row, column) in table.entries]
    known = [place for place in places if any(cell.chosen or cell.best_on_test for cell in table.entries[place].cells)]
    if not known:
        return ""
    tested = any(cell.best_on_test for place in known for cell in table.entries[place].cells)
    heads = ["arm", "backbone", "loss", "bits", "last epoch", "chosen on validation"]
    lines = _head(heads + (["selected on the test set (optimistic)"] if tested else []))
    for row, column in known:
        entry = table.entries[row, column]
        names = ["mean", "chosen", "best_on_test"][: 3 if tested else 2]
        values = [entry.mean if name == "mean" else entry.mean_of(name) for name in names]
        digits = [f"{value:.3f}" if math.isfinite(value) else MISSING for value in values]
        lines.append(_line([ARMS[row[0]], row[1], column[0].upper(), str(column[1]), *digits]))
    return "\n".join(lines) + "\n"


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown takes as text: no cell, link, emphasis or tag begins in it."""
    return re.sub(r"[\\|`*\[\]<>&~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))


def _csv(value: object) -> object:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and value >= 1:
        return int(value)  # counts
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"  # a spreadsheet would run it
    return value
