"""The figures of the page: quality against cost, precision and recall, training, and what the searches return.

A figure compares arms within one setting (data, loss, bits); several settings become several small figures.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from statistics import fmean

from distilhash.experiments.bubbles import Arrow, Disc, bubble_chart
from distilhash.experiments.results import (
    ARMS,
    ArmResult,
    Neighbour,
    QueryExample,
    ReportData,
    Setting,
    by_setting,
    count,
    score,
)
from distilhash.experiments.svg import Curve, element, legend, line_chart

MOST_NAMES = 5  # discs that carry their names in one chart
LONGEST_NAME = 26  # characters of a backbone's name in a chart: the table has the rest


def setting_name(setting: Setting, settings: Iterable[Setting]) -> str:
    """What sets this setting apart from the others: loss and bits, and the data where those differ."""
    dataset, protocol, framework, bits = setting
    parts = [framework.upper(), f"{bits} bits"]
    if len({other[:2] for other in settings}) > 1:
        parts += [dataset, protocol]
    return " · ".join(parts)


def trade_off(arms: Sequence[ArmResult]) -> str:
    """mAP against multiply-adds, one disc for each arm and backbone (the mean of its seeds).

    A few discs in one figure carry their names; more of them carry numbers, and a key says whose they are.
    """
    groups = by_setting([arm for arm in arms if math.isfinite(arm.map_at_all) and arm.macs > 0])
    figures = []
    for setting, group in groups.items():
        discs = [_disc(own) for own in _seeds_together(group)]
        name, key = setting_name(setting, groups), ""
        if len(groups) > 1 or len(discs) > MOST_NAMES:
            key = key_of(discs)
            discs = [replace(disc, label=(str(i),)) for i, disc in enumerate(discs, 1)]
        arrow = _gain(_seeds_together(group), discs, ("", "+")[bool(key)], (" from distilling", "")[bool(key)])
        figures.append((name, key, partial(_bubbles, discs, arrow, name)))
    return panels(figures, tall=1.2)


def _seeds_together(arms: Sequence[ArmResult]) -> list[list[ArmResult]]:
    """The arms of one setting, those that differ in nothing but the seed in one list."""
    found: dict[tuple[str, str], list[ArmResult]] = {}
    for arm in arms:
        found.setdefault((arm.arm, arm.backbone), []).append(arm)
    return list(found.values())


def _disc(seeds: Sequence[ArmResult]) -> Disc:
    one, mean = seeds[0], fmean(arm.map_at_all for arm in seeds)
    short = one.backbone if len(one.backbone) <= LONGEST_NAME else one.backbone[: LONGEST_NAME - 1] + "…"
    note = [f"{ARMS[one.arm]}, {one.backbone}", f"mAP@all {score(mean)}", f"{count(one.macs)} multiply-adds"]
    note += [f"{count(one.parameters)} parameters"] + ([f"mean of {len(seeds)} seeds"] if len(seeds) > 1 else [])
    label = (ARMS[one.arm], short, f"{score(mean)} · {count(one.parameters)}")
    return Disc(x=one.macs, y=mean, area=one.parameters, label=label, colour=one.arm, note="\n".join(note))


def key_of(discs: Sequence[Disc]) -> str:
    """Whose disc a number in the chart is, line by line: the three lines of a label in one."""
    items = []
    for i, disc in enumerate(discs, 1):
        name, backbone, figures = map(escape, disc.label)
        number = element("b", str(i), class_=f"c-{disc.colour}")
        items.append(element("li", f"{number}<span>{name}, {backbone}</span> <span>{figures}</span>"))
    return element("ul", "".join(items), class_="key")


def _gain(groups: Sequence[Sequence[ArmResult]], discs: Sequence[Disc], sign: str, told: str) -> Arrow | None:
    """The arrow from a student from scratch up to the same one distilled; the first such pair that rises."""
    found = {(own[0].arm, own[0].backbone): disc for own, disc in zip(groups, discs, strict=True)}
    for (arm, backbone), disc in found.items():
        before = found.get(("scratch", backbone))
        if arm == "distilled" and before and disc.y > before.y:
            return before, disc, f"{sign}{score(round(disc.y, 3) - round(before.y, 3))}{told}"
    return None


def _bubbles(discs: Sequence[Disc], arrow: Arrow | None, name: str, width: float, height: float, kind: str) -> str:
    return bubble_chart(
        discs,
        title=f"Quality against cost, {name}",
        x_label="multiply-adds per image (log scale)",
        y_label="mAP@all, expected",
        arrow=arrow,
        width=width,
        height=height,
        kind=kind,
    )


def precision_recall(arms: Sequence[ArmResult]) -> str:
    """One line for each arm, one figure for each setting; empty where no arm has its curve."""
    groups = by_setting([arm for arm in arms if any(map(math.isfinite, arm.precision_recall[1]))])
    figures = []
    for setting, group in groups.items():
        several = len({arm.arm for arm in group}) < len({(arm.arm, arm.backbone) for arm in group})
        curves = [
            Curve(ARMS[arm.arm] + (f", {arm.backbone}" if several else ""), *arm.precision_recall, arm.arm)
            for arm in group
        ]
        name = setting_name(setting, groups)
        title = f"Precision and recall, {name}"
        figures.append((name, legend(curves), partial(_precision_lines, curves, title)))
    return panels(figures)


def _precision_lines(curves: Sequence[Curve], title: str, width: float, height: float, kind: str) -> str:
    return line_chart(
        curves, title=title, x_label="recall", y_label="precision", x_range=(0, 1), y_range=(0, 1),
        width=width, height=height, kind=kind,
    )  # fmt: skip


def training(data: ReportData) -> str:
    """Losses and agreement by epoch; empty where no curve is given."""
    parts = (
        ("Distillation loss", "loss", data.distillation_loss),
        ("Agreement with the teacher", "agreement", data.agreement),
        ("Hashing loss", "loss", data.hashing_loss),
    )
    figures = []
    for name, y_label, given in parts:
        curves = [_of_an_arm(curve) for curve in given]
        if curves:
            figures.append((name, legend(curves), partial(_epochs, curves, name, y_label)))
    return panels(figures)


def _epochs(curves: Sequence[Curve], title: str, y_label: str, width: float, height: float, kind: str) -> str:
    return line_chart(curves, title=title, x_label="epoch", y_label=y_label, width=width, height=height, kind=kind)


def _of_an_arm(curve: Curve) -> Curve:
    """A curve named after an arm in the arm's words and colour; any other as it is."""
    for arm, name in ARMS.items():
        if curve.name == arm or curve.name.startswith((f"{arm} ", f"{arm},")):
            return replace(curve, name=name + curve.name.removeprefix(arm), colour=arm)
    return curve


def panels(figures: Sequence[tuple[str, str, Callable[[float, float, str], str]]], tall: float = 1.0) -> str:
    """Cards of a name, a legend and a chart, in as many columns as their number fills; empty where there are none.

    The letters of a chart keep their size only if it is shown about as wide as it was drawn: wide charts are drawn
    again for a phone, and the page shows one of the two.
    """
    columns = 1 if len(figures) == 1 else 2 if len(figures) in (2, 4) else 3
    wide, phone = {1: (820, 330), 2: (430, 300), 3: (310, 260)}[columns], (310, 260)
    shared = figures[0][1] if len({key for _, key, _ in figures}) == 1 < len(figures) else ""
    cards = []
    for name, key, draw in figures:
        charts = draw(wide[0], wide[1] * tall, "wide" if columns < 3 else "")
        if columns < 3:
            charts += draw(phone[0], phone[1] * tall, "narrow")
        heading = element("h3", escape(name)) if len(figures) > 1 else ""
        cards.append(element("figure", heading + ("" if key == shared else key) + charts, class_="card"))
    return shared + element("div", "".join(cards), class_=f"panels of-{columns}") if cards else ""


def searches(examples: Sequence[tuple[str, Sequence[QueryExample]]]) -> str:
    """Each query once, with what every arm finds for it below one another."""
    queries: dict[tuple[bytes, str], list[tuple[str, QueryExample]]] = {}
    for arm, own in examples:
        for example in own:
            queries.setdefault((example.query_png, example.label), []).append((arm, example))
    return "".join(_query(png, label, found) for (png, label), found in queries.items())


def _query(png: bytes, label: str, found: Sequence[tuple[str, QueryExample]]) -> str:
    image = element("figure", _image(png, f"Query: {label}") + element("figcaption", escape(label)))
    rows = []
    for arm, example in found:
        right = sum(correct for _, _, _, correct in example.neighbours)
        name = element("i", "", class_=f"c-{arm}", aria_hidden="true") + escape(ARMS.get(arm, arm))
        tally = element("span", f"{right} of {len(example.neighbours)} relevant")
        listed = element("ol", "".join(map(_neighbour, example.neighbours)))
        rows.append(element("div", element("h4", name + tally) + listed))
    return element(
        "article", image + element("div", "".join(rows), class_="found"), class_="query", aria_label=f"Query: {label}"
    )


def _neighbour(neighbour: Neighbour) -> str:
    png, label, distance, correct = neighbour
    verdict = "relevant" if correct else "not relevant"
    image = _image(png, f"{label}, distance {distance}, {verdict}")
    mark = element("b", "✓" if correct else "✗", aria_hidden="true")
    named = "" if correct else element("span", escape(label), title=label)
    return element("li", image + mark + f" {distance:d}" + named, class_="right" if correct else "wrong")


def _image(png: bytes, alt: str) -> str:
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return element("img", None, src=source, alt=alt)
