"""Line charts and bubble charts as inline SVG, drawn by matplotlib, with every colour a CSS variable of the page.

A chart is drawn in CSS pixels for one width. Lines differ in their dashes as well as in their colours. Every point is a
circle with a <title>, transparent on lines, which a browser shows under the pointer.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator, ScalarFormatter, StrMethodFormatter

MOST_TARGETS = 60  # points of one curve that show their numbers: more would lie on top of each other
LARGEST_DISC = 17.0  # radius, pixels
DASHES: tuple[tuple[float, ...], ...] = ((), (7, 4), (1.5, 4), (9, 4, 2, 4), (14, 5), (4, 2.5))
COLOURS = ("ink", "quiet", "hairline", "rule", "card", "distilled", "scratch", "teacher_frozen", "teacher_finetuned",
           "neutral-1", "neutral-2", "neutral-3", "neutral-4")  # fmt: skip

# matplotlib takes no CSS variables: it draws with colours that occur nowhere else, which are replaced in its SVG.
INK = {name: f"#fe01{i:02x}" for i, name in enumerate(COLOURS)}
TINT = {name: f"#fe02{i:02x}" for i, name in enumerate(COLOURS)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "distilhash", "font.family": "DejaVu Sans", "font.size": 12,
    "lines.scale_dashes": False, "path.simplify": False, "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A named line of a chart; points that are not finite break it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str  # one of COLOURS
    dash: tuple[float, ...] = ()  # one of DASHES
    spread: Sequence[tuple[float, float]] = ()  # lowest and highest y at each x, drawn as whiskers


@dataclass(frozen=True)
class Disc:
    """A point of a bubble chart."""

    x: float
    y: float
    area: float
    colour: str  # one of COLOURS
    label: str  # beside it
    name: str  # what the page's key calls it
    figures: str  # and its numbers there
    note: str  # shown under the pointer


def line_chart(
    lines: Sequence[Line], *, title: str, x_label: str, y_label: str, x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None, x_ticks: Sequence[float] = (), width: float = 430, height: float = 300,
) -> Markup:  # fmt: skip
    """Lines, each with a finite point, on linear axes; ranges are those of the data unless given.

    Args:
        title: what the chart shows, for those who do not see it.
        x_ticks: the only places where something was measured; the points there become dots.
        width, height: pixels.
    """
    with matplotlib.rc_context(STYLE):
        chart = _Chart(width, height, x_label, y_label)
        axes, told = chart.axes, []
        for line in lines:
            points = [(x, y) if math.isfinite(x) and math.isfinite(y) else (x, math.nan)
                      for x, y in zip(line.x, line.y, strict=True)]  # fmt: skip
            finite = [point for point in points if math.isfinite(point[1])]
            ink = INK[line.colour]
            style = (0, line.dash) if line.dash else "-"
            axes.plot(*zip(*points, strict=True), color=ink, linewidth=2.25, linestyle=style, solid_capstyle="round",
                      dash_capstyle="round")  # fmt: skip
            chart.points(finite if x_ticks else _lone(points), ink, 3.5, "dot")
            cap, gap = 0.012 * (max(line.x) - min(line.x)), math.nan
            for x, (low, high) in zip(line.x, line.spread, strict=False):
                if low < high:
                    across = (x - cap, x + cap, gap, x, x, gap, x - cap, x + cap)
                    up = (low, low, gap, low, high, gap, high, high)
                    axes.plot(across, up, color=ink, linewidth=1.5, alpha=0.75)
            shown = finite[:: max(1, math.ceil(len(finite) / MOST_TARGETS))]
            titles = [f"{line.name}\n{x_label} {x:.4g}\n{y_label} {y:.4g}" for x, y in shown]
            chart.points(shown, ink, 5, "target", titles)
            told.append(f"{line.name}: {finite[0][1]:.3g} to {finite[-1][1]:.3g}")
        axes.margins(x=0 if not x_ticks else 0.06, y=0.04)
        axes.set(**({"xlim": x_range} if x_range else {}), **({"ylim": y_range} if y_range else {}))
        integral = all(float(x).is_integer() for line in lines for x in line.x)  # there is no epoch 2.5
        axes.xaxis.set_major_locator(FixedLocator(x_ticks) if x_ticks else MaxNLocator(6, integer=integral))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.7g}"))
        return chart.svg(f"{title}. {y_label} by {x_label}, from the first point to the last. {'; '.join(told)}")


def bubble_chart(
    discs: Sequence[Disc], *, title: str, x_label: str, y_label: str, arrow: tuple[Disc, Disc, str] | None = None,
    width: float = 430, height: float = 360,
) -> Markup:  # fmt: skip
    """Discs on a logarithmic x axis; at least one, each with a finite position and x > 0.

    Args:
        title: what the chart shows, for those who do not see it.
        arrow: from one disc to another, and what it says.
        width, height: pixels.
    """
    with matplotlib.rc_context(STYLE):
        chart = _Chart(width, height, x_label, y_label)
        axes = chart.axes
        x, y = [disc.x for disc in discs], [disc.y for disc in discs]
        beyond = max(1.6, (max(x) / min(x)) ** 0.2)  # room for labels on both sides
        margin = max(0.02, 0.22 * (max(y) - min(y)))
        axes.set_xscale("log")
        axes.set(xlim=(min(x) / beyond, max(x) * beyond), ylim=(max(min(y) - margin, 0.0), max(y) + margin))
        axes.xaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(EngFormatter())
        most = max((disc.area for disc in discs if math.isfinite(disc.area)), default=0) or 1
        radii = [max(4.0, LARGEST_DISC * (d.area / most) ** 0.5 if math.isfinite(d.area) else 0.0) for d in discs]
        spots: list[tuple[float, float]] = axes.transData.transform(list(zip(x, y, strict=True))).tolist()
        taken = [(at, up, r) for (at, up), r in zip(spots, radii, strict=True)]
        if arrow:
            taken += _arrow(chart, arrow, [taken[discs.index(end)] for end in arrow[:2]])
        for disc, spot, r in sorted(zip(discs, spots, radii, strict=True), key=lambda one: -one[2]):  # the small on top
            chart.points([(disc.x, disc.y)], INK[disc.colour], r, "disc", [disc.note], TINT[disc.colour])
            offsets = [(r + 10, 0), (-r - 10, 0), (0, r + 11), (0, -r - 11)]
            places = [(spot[0] + x, spot[1] + y) for x, y in offsets]
            free = [all(math.dist(place, other[:2]) > other[2] + 8 for other in taken) for place in places]
            best = free.index(True) if any(free) else 0
            taken.append((*places[best], 8.0))
            chart.label(disc.label, (disc.x, disc.y), offsets[best], "center")
        facts = "; ".join(f"{disc.name}, {disc.figures} at {EngFormatter(places=1)(disc.x)}" for disc in discs)
        return chart.svg(f"{title}. {y_label} against {x_label}. {facts}")


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range; powers of ten alone where those would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found if len(found) <= 6 else [10.0**p for p in powers if low <= 10.0**p <= high]


def _lone(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points between gaps, which have no line to be seen by."""
    there = [False, *(math.isfinite(y) for _, y in points), False]
    return [point for i, point in enumerate(points) if there[i : i + 3] == [False, True, False]]


def _arrow(
    chart: _Chart, arrow: tuple[Disc, Disc, str], ends: Sequence[tuple[float, float, float]]
) -> list[tuple[float, float, float]]:
    """An arrow from rim to rim with its words beside it, and the room that these take; nothing between close discs."""
    start, end, told = arrow
    (x1, y1, r1), (x2, y2, r2) = ends
    if math.dist((x1, y1), (x2, y2)) - r1 - r2 < 24:
        return []
    props = {"arrowstyle": "->", "color": INK["ink"], "linewidth": 1.5, "mutation_scale": 13,
             "shrinkA": r1 + 4, "shrinkB": r2 + 5}  # fmt: skip
    chart.axes.annotate("", (end.x, end.y), (start.x, start.y), arrowprops=props)
    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    at, up = chart.axes.transData.inverted().transform(middle)
    chart.label(told, (at, up), (9, 0), "left")
    return [(middle[0] + 9 + step * 8, middle[1], 6.0) for step in range(len(told))]


class _Chart:
    """The axes of one chart in CSS pixels (72 dots an inch make a point a pixel), and its way to SVG."""

    def __init__(self, width: float, height: float, x_label: str, y_label: str) -> None:
        self.size = (width, height)
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self.figure.patch.set_visible(False)
        left, bottom = 46, 46
        box = (left / width, bottom / height, (width - left - 16) / width, (height - bottom - 28) / height)
        self.axes = self.figure.add_axes(box)
        self.axes.patch.set_visible(False)
        self.axes.set_axisbelow(True)
        self.axes.spines[["left", "top", "right"]].set_visible(False)
        self.axes.spines["bottom"].set_color(INK["rule"])
        self.axes.grid(axis="y", color=INK["hairline"], linewidth=1)
        self.axes.tick_params(which="both", bottom=False, left=False, labelcolor=INK["quiet"], pad=8)
        self.axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        self.axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        style: dict[str, Any] = {"color": INK["quiet"]}
        self.figure.text((left + width - 16) / 2 / width, 8 / height, x_label, ha="center", **style)
        self.figure.text(0, (height - 13) / height, y_label, **style)  # above its axis: nobody turns the head
        self._circles: dict[str, tuple[str, float, Sequence[str]]] = {}  # group id: class, radius, titles

    def points(
        self, points: Sequence[tuple[float, float]], ink: str, radius: float, kind: str, titles: Sequence[str] = (),
        fill: str = "",
    ) -> None:  # fmt: skip
        """Circles of a class of the page, each with its title where there are any."""
        if points:
            gid = f"circles-{len(self._circles)}"
            self._circles[gid] = (kind, radius, titles)
            self.axes.plot(
                *zip(*points, strict=True), linestyle="none", marker="o", markersize=2 * radius, gid=gid,
                markerfacecolor=fill or ink, markeredgecolor=ink, markeredgewidth=2 if fill else 0, zorder=3,
            )  # fmt: skip

    def label(self, text: str, point: tuple[float, float], offset: tuple[float, float], align: str) -> None:
        """Bold text at an offset in pixels from a point of the data."""
        self.axes.annotate(
            text, point, offset, textcoords="offset points", ha=align, va="center_baseline", gid="label",
            color=INK["ink"], fontweight="bold", zorder=4,
        )  # fmt: skip

    def svg(self, description: str) -> Markup:
        """The drawing as one image with this description, and without ids that could meet those of other charts."""
        file = io.BytesIO()
        self.figure.savefig(file, format="svg", metadata={"Date": None})
        view = "0 0 {:g} {:g}".format(*self.size)
        svg = ElementTree.Element("svg", {"viewBox": view, "role": "img", "aria-label": description})
        svg.extend(self._shapes(ElementTree.fromstring(file.getvalue()), ""))
        return Markup(ElementTree.tostring(svg, encoding="unicode"))

    def _shapes(self, node: ElementTree.Element, group: str) -> Iterator[ElementTree.Element]:
        """Texts, paths and circles without groups, clip paths and definitions; only circles are defined elsewhere."""
        circles = 0
        for child in node:
            tag = child.tag.rpartition("}")[2]
            gid = child.get("id", "")
            if tag == "g":
                yield from self._shapes(child, gid if gid == "label" or gid in self._circles else group)
            elif tag == "path":
                yield ElementTree.Element("path", d=_rounded(child.get("d", "")), style=_style(child))
            elif tag == "text":
                place = {axis: _rounded(child.get(axis, "")) for axis in "xy"}
                text = ElementTree.Element("text", {"class": group or "word"} | place, style=_style(child))
                text.text = child.text
                yield text
            elif tag == "use":
                kind, radius, titles = self._circles[group]
                place = {f"c{axis}": _rounded(child.get(axis, "")) for axis in "xy"}
                circle = ElementTree.Element("circle", {"class": kind} | place, r=f"{radius:g}", style=_style(child))
                if titles:
                    ElementTree.SubElement(circle, "title").text = titles[circles]
                circles += 1
                yield circle


def _rounded(numbers: str) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", numbers).strip()


def _style(node: ElementTree.Element) -> str:
    """The style with CSS variables in the places of our colours, and the fonts left to the page."""
    style = re.sub(r"font[a-z-]*: [^;]*; ", "", node.get("style", ""))
    style = re.sub("#fe01(..)", lambda found: _variable(found[1]), style)
    return re.sub("#fe02(..)", lambda found: f"color-mix(in srgb, {_variable(found[1])} 26%, var(--card))", style)


def _variable(index: str) -> str:
    return f"var(--{COLOURS[int(index, 16)].replace('_', '-')})"
