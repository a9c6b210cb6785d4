"""The comparison as one page, and everything that is written of it: table.md, cells.csv, index.html.

The frame is ``document``; ``matrix`` says what is compared, ``matrix_figures`` draws it, ``matrix_provenance`` says
where each number comes from. Every number of a table leads to its run: seeds, settings, machine and command.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from distilhash.errors import DistilhashError
from distilhash.experiments.document import Fact, document, share
from distilhash.experiments.matrix import (
    PAPER,
    Grid,
    Table,
    done_of,
    first_budget,
    headline,
    pairs_of,
    signed,
    tables_of,
    teacher_pairs,
)
from distilhash.experiments.matrix_figures import against_bits, precision_at_n, precision_recall, trade_off
from distilhash.experiments.matrix_provenance import provenance
from distilhash.experiments.matrix_tables import epochs, results
from distilhash.experiments.matrix_text import csv_text, markdown_page
from distilhash.experiments.results import ARMS
from distilhash.experiments.trials import Trial, read_trials
from distilhash.files import write_atomically

TITLE = "Teacher, student from scratch, student distilled"

_RESULTS = """A tint marks the better student of a column. Each number leads to its seeds, settings and command."""
_BITS = "Longer codes hold more, and cost more to keep."
_SPREAD = " The small figures are the lowest and the highest of the seeds."
_WHISKERS = " A dot is the mean over seeds; its whisker reaches from the lowest seed to the highest."
_TRADE_OFF = """Further left is cheaper, further up is better. The area of a disc is proportional to parameters. Shown
is the code length at which most arms are done, and the longest of those."""
_RECALL = """From left to right the search reaches further out: recall grows, precision falls. Each curve is that of
the lowest seed of its cell."""
_DEPTH = """The share of relevant images among the N nearest: what a person who looks at N results sees. Each curve is
that of the lowest seed of its cell."""
_EPOCHS = """The results above are those of the last epoch, whatever it is. Here is what another choice gives, and its
difference from the last epoch. Choosing on validation images is fair: no query had a say in it."""


def write_matrix(
    cells: Iterable[Mapping[str, Any]], directory: str | os.PathLike[str], title: str = TITLE, grid: Grid = PAPER
) -> None:
    """Write ``table.md``, ``cells.csv`` and ``index.html``, each whole or not at all.

    ``cells`` are JSON objects as ``cells.Trial`` names them; ``grid`` is what was planned. Errors: DistilhashError for an
    unsound cell or none, and then nothing is written.
    """
    read = read_trials(cells)
    tables = tables_of(read, grid)
    texts = {
        "table.md": markdown_page(tables, title),
        "cells.csv": csv_text(read),
        "index.html": page(read, title, grid),
    }
    for name, text in texts.items():
        write_atomically(Path(directory) / name, text)


def page(cells: Sequence[Trial], title: str = TITLE, grid: Grid = PAPER) -> str:
    """The page as text. Errors: DistilhashError where there is no cell."""
    if not cells:
        raise DistilhashError("a comparison needs at least one cell")
    tables = tables_of(cells, grid)
    several = any(len(entry.cells) > 1 for table in tables for entry in table.entries.values())
    spread, whiskers = (_SPREAD, _WHISKERS) if several else ("", "")
    sections = [
        ("results", "Results", _RESULTS + spread, "".join(results(table, i) for i, table in enumerate(tables))),
        ("bits", "Quality against code length", _BITS + whiskers, against_bits(tables)),
        ("trade-off", "Quality against cost", _TRADE_OFF, trade_off(tables)),
        ("precision-recall", "Precision and recall", _RECALL, precision_recall(tables)),
        ("precision-at-n", "Precision among the nearest", _DEPTH, precision_at_n(tables)),
        ("epochs", "Choice of the epoch", _EPOCHS, "".join(epochs(table, i) for i, table in enumerate(tables))),
        ("method", "Provenance", "", provenance(tables)),
    ]
    deck = f"""{done_of(tables)}. A setting is a data set, a student, a loss and a code length. Every number is expected
        average precision of the last epoch, the mean over its seeds, unless its table says otherwise."""
    return document(
        title=title,
        headline=headline(tables),
        deck=" ".join(deck.split()),
        facts=_facts(tables),
        sections=sections,
        styles=("report.css", "matrix.css"),
    )


def _facts(tables: Sequence[Table]) -> list[Fact]:
    """What the headline says, as numbers."""
    shown = first_budget(tables)
    scratch, teacher = pairs_of(shown, "scratch"), teacher_pairs(shown)
    done = sum(len(table.entries) for table in tables)
    facts = [(f"{done} of {sum(table.planned for table in tables)}", "cells of the comparison are done")]
    if scratch:
        mean = signed(fmean(pair.difference for pair in scratch))
        facts.append((mean, f"mAP against the same student from scratch, {_mean_of(len(scratch))}"))
    if teacher and all(pair.theirs.mean > 0 for pair in teacher):
        name = ARMS[teacher[0].theirs.one.arm].lower()
        kept = fmean(pair.ours.mean / pair.theirs.mean for pair in teacher)
        facts.append((share(kept), f"of the mAP of the {name}, {_mean_of(len(teacher))}"))
        for field, what in (("macs", "of its multiply-adds per image"), ("parameters", "of its parameters")):
            ratios = {_ratio(getattr(pair.ours.one, field), getattr(pair.theirs.one, field)) for pair in teacher}
            if len(ratios) == 1 and "" not in ratios:  # one number speaks for all settings, or none does
                facts.append((ratios.pop(), what))
    return facts


def _ratio(ours: float, theirs: float) -> str:
    return share(ours / theirs) if ours > 0 and theirs > 0 else ""


def _mean_of(settings: int) -> str:
    return f"mean of {settings} settings" if settings > 1 else "one setting"
