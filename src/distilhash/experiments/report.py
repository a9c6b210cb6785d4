"""One self-contained HTML page for a run that compares arms: no request to the network, nothing but text and images.

The frame of the page is ``document``; this file fills it. Every string that comes from outside is escaped where it
enters the markup. The plain data and what is said of it live in ``results``, the SVG in ``charts``.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from distilhash.errors import DistilhashError
from distilhash.experiments.document import Fact, document, facts_table, share
from distilhash.experiments.figures import precision_recall, searches, setting_name, trade_off, training
from distilhash.experiments.results import (
    ARMS,
    ArmResult,
    Neighbour,
    QueryExample,
    ReportData,
    by_setting,
    contenders,
    count,
    headline,
    png_bytes,
    results_json,
    score,
    terminal_table,
    whole,
)
from distilhash.experiments.svg import Curve, element

__all__ = [
    "ARMS",
    "ArmResult",
    "Curve",
    "Neighbour",
    "QueryExample",
    "ReportData",
    "headline",
    "page",
    "png_bytes",
    "results_json",
    "terminal_table",
    "write_report",
]

MEASURED = """Every query image is compared, by the Hamming distance between codes, with every image of the database.
Average precision is taken over the whole ranking and averaged over the queries: mAP@all. Short codes put many images
at the same distance, and nothing says which of them comes first. The column “expected” is therefore the mean over all
orders of such ties, in closed form; “stable” leaves ties in the order of the database. P@r≤2 is the share of relevant
images within two bits of the query; a query with no image that near counts as zero. The query images took part in no
training step, neither of distillation nor of hashing, and each figure is that of the last epoch, not of the one that
happened to suit the queries best."""

# Heading, what it means more closely, how a value is written, the sign of better, and the field of ArmResult.
COLUMNS: tuple[tuple[str, str, Callable[[float], str], int, str], ...] = (
    ("mAP@all", "expected", score, 1, "map_at_all"),
    ("mAP@all", "stable", score, 1, "stable_map_at_all"),
    ("P@r≤2", "", score, 1, "precision_at_radius_2"),
    ("Parameters", "", count, -1, "parameters"),
    ("MACs", "per image", count, -1, "macs"),
    ("Seconds", "training", whole, -1, "seconds"),
)


def write_report(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the page; a reader of the path sees the old page or the new one, never a part."""
    target = Path(path)
    if not target.parent.is_dir():
        raise DistilhashError("the folder of the report does not exist", target.parent, "make it first")
    text = page(data)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def page(data: ReportData) -> str:
    """The whole page as text."""
    if not data.arms:
        raise DistilhashError("a report needs at least one arm")
    sections = [
        ("results", "Results", "", _table(data.arms)),
        ("trade-off", "Quality against cost", _TRADE_OFF, trade_off(data.arms)),
        ("precision-recall", "Precision and recall", _PRECISION, precision_recall(data.arms)),
        ("training", "Training", _TRAINING, training(data)),
        ("queries", "What the searches return", _QUERIES, searches(data.examples)),
        ("method", "How it was measured", "", _method(data)),
    ]
    return document(
        title=data.title, headline=headline(data.arms), deck=data.subtitle, facts=_facts(data.arms), sections=sections
    )


_TRADE_OFF = """Further left is cheaper, further up is better. The figures with each arm are its mAP and its parameters,
to which the area of its disc is proportional."""
_PRECISION = """From left to right the search reaches further out: recall grows, precision falls. A curve that stays
high for longer finds more of the relevant images before the first irrelevant ones."""
_TRAINING = """Distillation sees images without labels: its loss and its agreement with the teacher are measured on
images that it was not trained on where the legend says so. Hashing then sees the labelled images."""
_QUERIES = """The nearest database images of each query, nearest first, with their Hamming distance in bits. A tick and
a green frame mark a relevant image; a cross and a red frame mark any other, with what it shows."""


def _facts(arms: Sequence[ArmResult]) -> list[Fact]:
    """Five numbers under the headline, those of them that the run has."""
    found = contenders(arms)
    if found is None:
        return []
    student, scratch, teacher = found.student, found.scratch, found.teacher
    facts = [(score(student.map_at_all), f"mAP@all of the distilled student, {student.bits} bits")]
    if scratch:
        sign = "±" if score(abs(found.gain)) == ".000" else "+" if found.gain > 0 else "\N{MINUS SIGN}"
        facts.append((sign + score(abs(found.gain)), "mAP against the same student from scratch"))
    if teacher and teacher.map_at_all > 0:
        facts.append((f"{100 * student.map_at_all / teacher.map_at_all:.0f} %", "of the mAP of the teacher"))
    if teacher and teacher.macs > 0 and teacher.parameters > 0:
        facts.append((share(student.macs / teacher.macs), "of its multiply-adds per image"))
        facts.append((share(student.parameters / teacher.parameters), "of its parameters"))
    return facts


def _table(arms: Sequence[ArmResult]) -> str:
    heads = [element("th", escape(name), scope="col", class_="text") for name in ("Arm", "Backbone", "Framework")]
    heads.append(element("th", "Bits", scope="col"))
    for name, detail, _, _, _ in COLUMNS:
        heads.append(element("th", escape(name) + (element("small", escape(detail)) if detail else ""), scope="col"))
    groups = by_setting(arms)
    bodies = []
    for setting, group in groups.items():
        rows = []
        if len(groups) > 1:
            title = element("th", escape(setting_name(setting, groups)), colspan=4 + len(COLUMNS), scope="rowgroup")
            rows.append(element("tr", title, class_="group"))
        rows += [_row(arm, group) for arm in group]
        bodies.append(element("tbody", "".join(rows)))
    caption = element("caption", "Retrieval quality and cost of each arm", class_="unseen")
    table = element("table", caption + element("thead", element("tr", "".join(heads))) + "".join(bodies), class_="arms")
    return element("div", table, class_="card scroll", tabindex=0, role="region", aria_label="Table of results")


def _row(arm: ArmResult, group: Sequence[ArmResult]) -> str:
    twins = Counter((a.arm, a.backbone) for a in group)[arm.arm, arm.backbone]
    name = ARMS[arm.arm] + (f", seed {arm.seed}" if twins > 1 else "")
    cells = [element("th", element("i", "", aria_hidden="true") + escape(name), scope="row", class_=f"c-{arm.arm}")]
    cells.append(element("td", escape(arm.backbone), class_="text backbone", data_label="Backbone", title=arm.backbone))
    cells.append(element("td", escape(arm.framework.upper()), class_="text", data_label="Framework"))
    cells.append(element("td", escape(str(arm.bits)), data_label="Bits"))
    for heading, detail, written, better, field in COLUMNS:
        value: float = getattr(arm, field)
        rivals = [getattr(a, field) for a in group if math.isfinite(getattr(a, field))]
        best = (max(rivals) if better > 0 else min(rivals)) if rivals else math.nan
        text = element("span", escape(written(value)))
        classes = "main" if field == "map_at_all" else ""
        if value == best and len(set(rivals)) > 1:
            classes, text = f"{classes} best", text + element("span", " (best)", class_="unseen")
        cells.append(
            element(
                "td",
                text,
                class_=classes.strip(),
                data_label=heading if classes.startswith("main") else f"{heading} {detail}".strip(),
            )
        )
    return element("tr", "".join(cells))


def _method(data: ReportData) -> str:
    """Protocol and seeds in prose, the notes, the provenance, and the command."""
    protocols = " and ".join(dict.fromkeys(f"{arm.dataset}, protocol “{arm.protocol}”" for arm in data.arms))
    seeds = sorted({arm.seed for arm in data.arms})
    sizes = " and ".join(f"{size}" for size in sorted({arm.input_size for arm in data.arms}))
    drawn = (
        f"Every arm was trained once, with seed {seeds[0]}: a small difference between two arms may be chance."
        if len(seeds) == 1
        else f"Seeds {', '.join(map(str, seeds))} were trained; where one figure stands for several, it is their mean."
    )
    opening = f"The data are {protocols}; images enter the networks at {sizes} pixels. {drawn} {MEASURED}"
    notes = "".join(element("li", escape(note)) for note in data.notes)
    prose = element("p", escape(opening)) + (element("ul", notes) if notes else "")
    facts = {name: value for name, value in data.provenance.items() if name != "command"}
    table = facts_table(list(facts.items()), "Where the figures come from")
    command = data.provenance.get("command")
    again = ""
    if command:
        again = element("h3", "The command that makes this run again") + element("pre", escape(command), tabindex=0)
    return element("div", prose, class_="prose") + table + again
