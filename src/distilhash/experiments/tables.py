"""The comparison as text: Markdown tables, one line of CSV for each trial, and a table for the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table as TerminalTable
from rich.text import Text

from distilhash.experiments.comparison import MISSING, Entry, Table, count, done_of, score, tables_of, whole
from distilhash.experiments.trials import ARMS, PAPER, Grid, Trial, read_trials

CSV = ("dataset", "protocol", "budget", "arm", "backbone", "framework", "bits", "seed", "metric", "map", "stable_map",
       "chosen.epoch", "chosen.map", "best_on_test.epoch", "best_on_test.map", "precision_at_radius_2", "parameters",
       "macs", "seconds", "input_size", "epochs", "machine", "command", "settings")  # fmt: skip
RENAMED = {"map": "expected_map_last_epoch", "stable_map": "stable_map_last_epoch",
           "chosen.epoch": "validation_chosen_epoch", "chosen.map": "validation_chosen_map",
           "best_on_test.epoch": "test_selected_epoch", "best_on_test.map": "test_selected_map"}  # fmt: skip


def markdown_table(rows: Iterable[Mapping[str, Any]], grid: Grid = PAPER) -> str:
    """Rows of results.json as Markdown tables, with what their numbers are below them; unsound rows are refused."""
    return "\n".join(map(_markdown, tables_of(read_trials(rows), grid)))


def markdown_page(tables: Sequence[Table], title: str) -> str:
    """The tables under a title, and after each what another choice of the epoch gives."""
    parts = [text for table in tables for text in (_markdown(table), _markdown_epochs(table)) if text]
    return "\n".join([f"# {_plain(title)}\n", *parts])


def csv_text(trials: Iterable[Trial]) -> str:
    """One line for each trial that is done, every number of it in full digits; what was not measured is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([RENAMED.get(name, name) for name in CSV])
    writer.writerows([_csv(_value(trial, name)) for name in CSV] for trial in trials if trial.done)
    return file.getvalue()


def terminal_table(trials: Iterable[Trial]) -> TerminalTable:
    """The trials for rich to print, one a line; in 80 columns names wrap, and numbers stay whole."""
    table = TerminalTable(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("method", "backbone"):
        table.add_column(name, overflow="fold")
    table.add_column("code", no_wrap=True)
    for name in ("seed", "mAP", "stable", "P@r<=2", "params", "MACs", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for t in sorted(trials, key=lambda t: (t.dataset, t.protocol, t.framework, t.bits, list(ARMS).index(t.arm))):
        numbers = [*map(score, (t.map, t.stable_map, t.precision_at_radius_2)), count(t.parameters), count(t.macs)]
        texts = [ARMS[t.arm], t.backbone, f"{t.framework.upper()} {t.bits}", str(t.seed), *numbers, whole(t.seconds)]
        table.add_row(*map(_printable, texts))
    return table


def note(table: Table) -> str:
    """What the numbers of a table are, in a few sentences."""
    entries = list(table.entries.values())
    parts = [f"{done_of([table])}" + (f"; {MISSING} is not done yet" if len(entries) < len(table.planned) else "")]
    parts.append("expected AP (ties in random order) of the last epoch; costs at the longest code")
    if any(len(entry.trials) > 1 for entry in entries):
        parts.append("mean over seeds (lowest to highest)")
    if table.seeds:
        parts.append(f"seed{'s' if len(table.seeds) > 1 else ''} {', '.join(map(str, table.seeds))}")
    if entries and all(len(entry.trials) == 1 for entry in entries):
        parts.append("one seed, so a small difference may be chance")
    machines = sorted({trial.machine for entry in entries for trial in entry.trials if trial.machine})
    if machines:
        parts.append(f"run on {' and '.join(machines)}")
    if any(entry.mixed for entry in entries):
        parts.append("† its seeds were run with different settings")
    return "; ".join(parts) + "."


def _markdown(table: Table) -> str:
    heads = [f"{framework.upper()} {bits}" for framework, bits in table.columns]
    lines = [f"**{_plain(table.name)}**: {table.metric}, protocol {_plain(table.protocol)}", ""]
    lines += _head(["method", "backbone", *heads, "parameters", "multiply-adds"])
    for row in table.rows:
        dearest = table.costs(row)
        costs = [count(dearest.parameters), count(dearest.macs)] if dearest else [MISSING, MISSING]
        own = [_markdown_entry(entry, table) for entry in table.entries_of(row)]
        lines.append(_line([ARMS[row[0]], row[1] or MISSING, *own, *costs]))
    return "\n".join([*lines, "", _plain(note(table))]) + "\n"


def _markdown_entry(entry: Entry | None, table: Table) -> str:
    if entry is None:
        return MISSING
    several = len(entry.trials) > 1
    details = ["{:.3f} to {:.3f}".format(*entry.spread)] if several else []
    if table.seeds is None:
        details.append(f"{len(entry.trials)} seed{'s' if several else ''}")
    marks = "†" if entry.mixed else ""
    return f"{entry.mean:.3f}{marks}" + (f" ({', '.join(details)})" if details else "")


def _markdown_epochs(table: Table) -> str:
    """A line for each entry that knows an epoch selected by a score; empty where none does."""
    places = [(row, column) for row in table.rows for column in table.columns if (row, column) in table.entries]
    known = [place for place in places if any(t.chosen or t.best_on_test for t in table.entries[place].trials)]
    if not known:
        return ""
    tested = any(trial.best_on_test for place in known for trial in table.entries[place].trials)
    heads = ["method", "backbone", "framework", "bits", "last epoch", "selected on the validation set"]
    lines = _head(heads + (["selected on the test set (optimistic)"] if tested else []))
    for row, column in known:
        names = ["map", "chosen", "best_on_test"][: 3 if tested else 2]
        values = [table.entries[row, column].mean_of(name) for name in names]
        digits = [f"{value:.3f}" if math.isfinite(value) else MISSING for value in values]
        lines.append(_line([ARMS[row[0]], row[1], column[0].upper(), str(column[1]), *digits]))
    return "\n".join(lines) + "\n"


def _head(texts: Sequence[str]) -> list[str]:
    return [_line(texts), "|" + "---|" * len(texts)]


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(text) for text in texts)} |"


def _plain(text: str) -> str:
    """Text that Markdown takes as text: no column, link, emphasis or tag begins in it."""
    return re.sub(r"[\\|`*\[\]<>&~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))


def _value(trial: Trial, name: str) -> object:
    value: object = trial
    for part in name.split("."):
        value = getattr(value, part, None)  # of an epoch that was not selected
    return value


def _csv(value: object) -> object:
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and value >= 1:
        return int(value)  # counts
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"  # a spreadsheet would run it
    return value


def _printable(text: str) -> Text:
    return Text("".join(c if c.isprintable() else "?" for c in text))
