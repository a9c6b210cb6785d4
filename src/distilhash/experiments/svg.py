"""Line charts as inline SVG, and what every chart is made of: text, with every colour a CSS variable of the page.

A chart is drawn for one width in its own pixels and scaled by the page. Colour never speaks alone: lines differ in
their dashes as well. Hover targets hold a <title>, which every browser shows without a script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from distilhash.errors import DistilhashError

GLYPH = 0.6  # advance of a character over the font size, for the widest of the common interface fonts
MOST_TARGETS = 60  # hover targets on one curve: more would lie on top of each other
DASHES = ("", "7 4", "1.5 4", "9 4 2 4", "14 5", "4 2.5")  # in the order in which names appear

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Curve:
    """A named line; points that are not finite break it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = ""  # an arm's key; empty: the next of the neutral colours
    dash: str | None = None  # one of DASHES, where it must be the same in several charts; None: by order
    spread: Sequence[tuple[float, float]] = ()  # lowest and highest y at each x, drawn as whiskers; empty: none

    def __post_init__(self) -> None:
        """DistilhashError unless each x has its y, and its spread where there is one."""
        if len(self.x) != len(self.y):
            raise DistilhashError(f"the curve {self.name!r} needs as many x as y", f"{len(self.x)} and {len(self.y)}")
        if self.spread and len(self.spread) != len(self.x):
            raise DistilhashError(
                f"the curve {self.name!r} needs a spread for each x", f"{len(self.spread)} of {len(self.x)}"
            )


def element(tag: str, content: str | None = None, **attributes: object) -> str:
    """One SVG or HTML element; attribute values are escaped, content is markup already. class_ is class, a_b is a-b."""
    pairs = ((k.rstrip("_").replace("_", "-"), v) for k, v in attributes.items())
    texts = "".join(
        f' {k}="{escape(f"{v:.2f}".rstrip("0").rstrip(".") if isinstance(v, float) else str(v))}"' for k, v in pairs
    )
    return f"<{tag}{texts}/>" if content is None else f"<{tag}{texts}>{content}</{tag}>"


def words(text: str, **attributes: object) -> str:
    """A <text> of this text, escaped."""
    return element("text", escape(text), **attributes)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) that lie within the range."""
    if not low < high:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float, step: float) -> str:
    """A tick's number, with the decimals that a step of this size needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2
    if decimals and abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1  # steps of 0.25
    return f"{value:,.{decimals}f}"


@dataclass(frozen=True)
class Axes:
    """Ranges, ticks and the plot's box, and the two maps from data to pixels."""

    box: Box
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool = False

    def across(self, x: float) -> float:
        """Pixels from the left."""
        low, high = self.x_range
        if self.log_x:
            x, low, high = math.log(x), math.log(low), math.log(high)
        return self.box[0] + (x - low) / (high - low) * (self.box[2] - self.box[0])

    def up(self, y: float) -> float:
        """Pixels from the top, as SVG counts them."""
        low, high = self.y_range
        return self.box[3] - (y - low) / (high - low) * (self.box[3] - self.box[1])

    def drawn(self, x_ticks: dict[float, str], y_ticks: dict[float, str], x_label: str, y_label: str) -> str:
        """Grid, axis, the texts of the ticks and the names of both axes."""
        left, _, right, bottom = self.box
        parts = []
        for y, text in y_ticks.items():
            parts.append(element("line", x1=left, x2=right, y1=self.up(y), y2=self.up(y), class_="grid"))
            parts.append(words(text, x=left - 8, y=self.up(y) + 4, class_="tick end"))
        for x, text in x_ticks.items():
            parts.append(
                element("line", x1=self.across(x), x2=self.across(x), y1=bottom, y2=bottom + 5, class_="notch")
            )
            parts.append(words(text, x=self.across(x), y=bottom + 19, class_="tick mid"))
        parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
        parts.append(words(x_label, x=(left + right) / 2, y=bottom + 38, class_="name mid"))
        parts.append(words(y_label, x=0.0, y=13.0, class_="name"))  # level, above its axis: no neck is turned
        return "".join(parts)


def svg(width: float, height: float, description: str, content: str, kind: str = "") -> str:
    """A chart that a screen reader meets as one image with this description; the kind is a class of the page."""
    view = f"0 0 {width:g} {height:g}"
    return element("svg", content, class_=f"chart {kind}".strip(), viewBox=view, role="img", aria_label=description)


def empty(width: float, height: float, what: str, kind: str = "") -> str:
    """What stands in the place of a chart without a single point."""
    frame = element("rect", x=1, y=1, width=width - 2, height=height - 2, rx=6, class_="void")
    return svg(
        width, height, f"{what}: no data", frame + words("no data", x=width / 2, y=height / 2, class_="name mid"), kind
    )


def styles(curves: Sequence[Curve]) -> dict[str, tuple[str, str]]:
    """For each name, in order: the class that colours it and its dashes."""
    first = {curve.name: curve for curve in reversed(curves)}
    found: dict[str, tuple[str, str]] = {}
    for i, name in enumerate(dict.fromkeys(curve.name for curve in curves)):
        own = first[name]
        found[name] = (f"c-{own.colour or i % 4 + 1}", DASHES[i % len(DASHES)] if own.dash is None else own.dash)
    return found


def legend(curves: Sequence[Curve]) -> str:
    """The names as an HTML list, each with a stroke of its line."""
    items = []
    for name, (colour, dash) in styles(curves).items():
        line = element("line", x1=1, x2=27, y1=5, y2=5, class_=f"line {colour}", stroke_dasharray=dash or "none")
        swatch = element("svg", line, viewBox="0 0 28 10", width=28, height=10, aria_hidden="true")
        items.append(element("li", swatch + escape(name)))
    return element("ul", "".join(items), class_="legend") if items else ""


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    x_marks: Sequence[float] = (),
    width: float = 430,
    height: float = 290,
    kind: str = "",
) -> str:
    """Lines on linear axes; ranges are those of the data unless given.

    ``x_marks`` are the only places where something was measured: they become the ticks, and the points become dots.
    """
    finite = [[point for run in _runs(curve) for point in run] for curve in curves]
    points = [point for own in finite for point in own]
    if not points:
        return empty(width, height, title, kind)
    x_range = x_range or _around([x for x, _ in points], 0.0)
    reached = [y for curve in curves for pair in curve.spread for y in pair if math.isfinite(y)]
    y_range = y_range or _around([y for _, y in points] + reached, 0.04)
    x_ticks, y_ticks = ticks(*x_range), ticks(*y_range, most=5)
    if all(float(x).is_integer() for x, _ in points):
        x_ticks = [x for x in x_ticks if float(x).is_integer()]  # there is no epoch 2.5
    y_texts = {y: number(y, y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else 0.01) for y in y_ticks}
    x_ticks = list(x_marks) or x_ticks
    x_texts = {x: number(x, x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else 1) for x in x_ticks}
    left = 14 + 12 * GLYPH * max(map(len, y_texts.values()))
    axes = Axes((left, 28, width - 16, height - 46), x_range, y_range)
    content = [axes.drawn(x_texts, y_texts, x_label, y_label)]
    dressed = styles(curves)
    for curve, own in zip(curves, finite, strict=True):
        colour, dash = dressed[curve.name]
        drawn = []
        for run in _runs(curve):
            spots = [(axes.across(x), axes.up(y)) for x, y in run]
            drawn.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots))
            for x, y in spots if x_marks else ():
                content.append(element("circle", cx=x, cy=y, r=3.5, class_=f"dot {colour}"))
            if len(spots) == 1 and not x_marks:  # a point between gaps has no line to be seen by
                content.append(element("circle", cx=spots[0][0], cy=spots[0][1], r=3.5, class_=f"dot {colour}"))
        path = "".join(drawn)
        content += [_whisker(axes, x, *ends, colour) for x, ends in zip(curve.x, curve.spread, strict=False)]
        content.append(element("path", d=path, class_=f"line {colour}", stroke_dasharray=dash or "none"))
        stride = max(1, math.ceil(len(own) / MOST_TARGETS))
        for x, y in own[::stride]:
            told = element("title", escape(f"{curve.name}\n{x_label} {x:.4g}\n{y_label} {y:.4g}"))
            content.append(element("circle", told, cx=axes.across(x), cy=axes.up(y), r=5, class_=f"target {colour}"))
    ends = [f"{c.name}: {own[0][1]:.3g} to {own[-1][1]:.3g}" for c, own in zip(curves, finite, strict=True) if own]
    description = f"{title}. {y_label} by {x_label}, from the first point to the last. " + "; ".join(ends)
    return svg(width, height, description, "".join(content), kind)


def _whisker(axes: Axes, x: float, low: float, high: float, colour: str) -> str:
    """A stroke from the lowest to the highest, with caps; nothing where they are one."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return ""
    at, bottom, top = axes.across(x), axes.up(low), axes.up(high)
    caps = "".join(f"M{at - 4:.1f} {y:.1f}L{at + 4:.1f} {y:.1f}" for y in (bottom, top))
    return element("path", d=f"M{at:.1f} {bottom:.1f}L{at:.1f} {top:.1f}{caps}", class_=f"whisker {colour}")


def _around(values: Sequence[float], share: float) -> tuple[float, float]:
    """The range of the values and this share of it on both sides; a range of nothing is widened."""
    low, high = min(values), max(values)
    margin = (high - low) * share if high > low else abs(high) * 0.5 or 0.5
    return low - margin, high + margin


def _runs(curve: Curve) -> list[list[tuple[float, float]]]:
    """The stretches of finite points between those that are not."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
