"""The trade-off chart: discs on a logarithmic axis of cost, each with its name beside it.

Names are laid where they cover least, so that a chart of few discs is read without a legend or a script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from distilhash.experiments.svg import GLYPH, Axes, Box, element, empty, number, svg, ticks, words

LARGEST_DISC = {True: 19.0, False: 14.0}  # radius in a wide and in a narrow chart, pixels


@dataclass(frozen=True)
class Disc:
    """A point of a bubble chart: position, area, and the lines of its label."""

    x: float
    y: float
    area: float
    label: Sequence[str]  # the first is set in bold
    colour: str = ""
    note: str = ""  # what the hover says


Arrow = tuple[Disc, Disc, str]  # from, to, and what it says


class _Spot(NamedTuple):
    """A disc in pixels."""

    disc: Disc
    x: float
    y: float
    r: float


def bubble_chart(
    discs: Sequence[Disc],
    *,
    title: str,
    x_label: str,
    y_label: str,
    arrow: Arrow | None = None,
    width: float = 1000,
    height: float = 430,
    kind: str = "",
) -> str:
    """Discs on a logarithmic x axis, their names beside them; the arrow joins two of them, with its own words."""
    shown = [d for d in discs if math.isfinite(d.x) and d.x > 0 and math.isfinite(d.y)]
    if not shown:
        return empty(width, height, title, kind)
    wide = width > 600
    spread = max(d.x for d in shown) / min(d.x for d in shown)
    beyond = max(1.6, spread ** (0.12 if wide else 0.25))  # room for names on both sides
    x_range = (min(d.x for d in shown) / beyond, max(d.x for d in shown) * beyond)
    low, high = min(d.y for d in shown), max(d.y for d in shown)
    margin = max(0.02, 0.22 * (high - low))
    y_range = (max(low - margin, min(0.0, low)), high + margin)
    y_ticks = [y for y in ticks(*y_range) if y <= 1] or [low]  # no share lies above one
    y_texts = {y: number(y, y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else 0.01) for y in y_ticks}
    left = 14 + 12 * GLYPH * max(map(len, y_texts.values()))
    axes = Axes((left, 30, width - 10, height - 46), x_range, y_range, log_x=True)
    content = [axes.drawn({x: _prefixed(x) for x in log_ticks(*x_range)}, y_texts, x_label, y_label)]
    most = max((d.area for d in shown if math.isfinite(d.area)), default=1) or 1
    placed = []
    for disc in sorted(shown, key=lambda d: -d.area):  # a small disc is never hidden behind a large one
        share = disc.area / most if math.isfinite(disc.area) and disc.area > 0 else 0.0
        placed.append(_Spot(disc, axes.across(disc.x), axes.up(disc.y), max(4.0, LARGEST_DISC[wide] * share**0.5)))
    taken: list[Box] = [(x - r, y - r, x + r, y + r) for _, x, y, r in placed]
    ends = {id(spot.disc): spot for spot in placed}
    if arrow and id(arrow[0]) in ends and id(arrow[1]) in ends:
        drawn, boxes = _arrow(ends[id(arrow[0])], ends[id(arrow[1])], arrow[2])
        content.append(drawn)
        taken += boxes
    for disc, x, y, r in placed:
        told = element("title", escape(disc.note)) if disc.note else ""
        content.append(element("circle", told, cx=x, cy=y, r=r, class_=f"disc c-{disc.colour or 1}"))
    for spot in placed:
        drawn, box = _label(spot, taken, (axes.box[0] + 2, 16, width - 2, axes.box[3] - 2))
        content.append(drawn)
        taken.append(box)
    facts = "; ".join(" ".join(d.label) + f" at {_prefixed(float(f'{d.x:.3g}'))}" for d in shown if d.label)
    return svg(width, height, f"{title}. {y_label} against {x_label}. {facts}", "".join(content), kind)


def _label(spot: _Spot, taken: Sequence[Box], inside: Box) -> tuple[str, Box]:
    """The disc's name where it covers least of what is there already."""
    disc, x, y, r = spot
    if not disc.label:
        return "", (x, y, x, y)
    size, leading, gap = 12.5, 15.5, 7
    wide, tall = size * GLYPH * max(map(len, disc.label)), leading * len(disc.label)
    beside = [(at, y - share * tall) for share in (0.5, 0.25, 0.75) for at in (x + r + gap, x - r - gap - wide)]
    above_or_below = [(at, y + r + gap / 2 if down else y - r - gap / 2 - tall)
                      for down in (False, True) for at in (x - wide / 2, x + r / 2, x - r / 2 - wide)]  # fmt: skip

    def cost(place: tuple[float, float]) -> float:
        box = (place[0], place[1], place[0] + wide, place[1] + tall)
        outside = wide * tall - _overlap(box, inside)
        return 4 * outside + sum(_overlap(box, other) for other in taken)

    left, top = min(beside + above_or_below, key=cost)  # the first of equals: to the right
    anchor, at = ("end", left + wide) if left + wide <= x else ("mid", left + wide / 2) if left < x else ("", left)
    lines = []
    for i, text in enumerate(disc.label):
        kind = "value" if i else "label"
        lines.append(words(text, x=at, y=top + size * 0.85 + i * leading, class_=f"{kind} {anchor}".strip()))
    return "".join(lines), (left, top, left + wide, top + tall)


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)


def _arrow(start: _Spot, end: _Spot, told: str) -> tuple[str, list[Box]]:
    """An arrow from rim to rim with its words beside the middle; nothing where the rims are too close for one."""
    (_, x1, y1, r1), (_, x2, y2, r2) = start, end
    length = math.hypot(x2 - x1, y2 - y1)
    if length - r1 - r2 < 24:
        return "", []
    across, down = (x2 - x1) / length, (y2 - y1) / length
    x1, y1, x2, y2 = x1 + across * (r1 + 4), y1 + down * (r1 + 4), x2 - across * (r2 + 5), y2 - down * (r2 + 5)
    barbs = [(x2 - 7 * (across + side * down * 0.6), y2 - 7 * (down - side * across * 0.6)) for side in (-1, 1)]
    shaft = f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}M{barbs[0][0]:.1f} {barbs[0][1]:.1f}L{x2:.1f} {y2:.1f}"
    x, y, wide = (x1 + x2) / 2 + 9, (y1 + y2) / 2, 12 * GLYPH * len(told)
    drawn = element("path", d=f"{shaft}L{barbs[1][0]:.1f} {barbs[1][1]:.1f}", class_="arrow")
    boxes = [(min(x1, x2) - 3, min(y1, y2), max(x1, x2) + 3, max(y1, y2)), (x, y - 11, x + wide, y + 11)]
    return drawn + words(told, x=x, y=y + 4, class_="gain"), boxes


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range; powers of ten alone where those would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found if len(found) <= 7 else [10.0**p for p in powers if low <= 10.0**p <= high]


def _prefixed(value: float) -> str:
    for scale, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{value / scale:g}{prefix}"
    return f"{value:g}"
