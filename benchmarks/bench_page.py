"""One HTML page of benchmarks/results.json: the ratios as a table, and every cost against its size as a chart.

python benchmarks/bench_page.py --output runs/benchmarks.html
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from distilhash.experiments.svg import Curve, element, legend, line_chart
from readme_tables import SPEED
from sidebyside import RESULTS

TITLES = {
    "cost_encode": "Encoding CIFAR-10 at 32 pixels",
    "cost_distill": "One epoch of distilling CIFAR-10 at 32 pixels",
    "cost_map": "mAP@all of 100 queries, 64 bits",
    "cost_hamming": "Distances of 100 queries, 64 bits",
}
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>distilhash: benchmarks</title>
<style>
{style}
.arms td.backbone {{ white-space: normal; min-width: 14rem; max-width: 20rem; font-size: .8rem; }}
.arms tbody th {{ white-space: normal; min-width: 10rem; }}
</style>
</head>
<body>
<header>
<p class="over">distilhash: benchmarks</p>
<h1>What is faster, by how much, and what grows with size</h1>
<p class="deck">Both sides of every row were timed in turn on one machine ({machine}); a ratio is a median.</p>
</header>
<main>
<section><h2>Side by side</h2>{table}</section>
<section><h2>Cost against size</h2>{charts}</section>
</main>
</body>
</html>
"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    style = resources.files("distilhash.experiments").joinpath("report.css").read_text(encoding="utf-8")
    scaled = [row for row in rows if "sizes" in row]
    charts = element("div", "".join(map(chart, scaled)), class_=f"panels of-{min(3, max(1, len(scaled)))}")
    machine = escape(str(rows[0]["settings"]["machine"])) if rows else "none yet"
    compared = [row for row in rows if "sizes" not in row]
    return PAGE.format(style=style, machine=machine, table=table(compared), charts=charts)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Work, peer, both rates, the ratio with its spread, and what was promised."""
    heads = ("work", "against", "peer", "ours", "ratio", "lowest to highest", "promised")
    named = (element("th", escape(name), class_="text" if i < 2 else "") for i, name in enumerate(heads))
    head = element("tr", "".join(named))
    body = []
    for row in rows:
        spread = row.get("spread")
        cells = (
            element("th", escape(SPEED.get(row["work"], row["work"]))),
            element("td", escape(row["peer"]), class_="text backbone", title=row["peer"]),
            element("td", escape(rate(row["peer_rate"]))),
            element("td", escape(f"{rate(row['ours_rate'])} {row['unit']}")),
            element("td", escape(f"{row['ratio']:.3g}\N{MULTIPLICATION SIGN}"), class_="main"),
            element("td", escape(f"{spread[0]:.3g} to {spread[1]:.3g}") if spread else ""),
            element("td", escape(f"{row['least']:g}\N{MULTIPLICATION SIGN}") if "least" in row else ""),
        )
        body.append(element("tr", "".join(cells)))
    content = element("thead", head) + element("tbody", "".join(body))
    return element("div", element("table", content, class_="arms"), class_="card scroll")


def rate(value: float) -> str:
    """Three or four digits: 8.58, 459, 11,617."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def chart(row: dict[str, Any]) -> str:
    """Measured seconds and the line through them."""
    sizes, seconds = row["sizes"], row["seconds"]
    fitted = [row["seconds_for_none"] + row["seconds_for_each"] * size for size in sizes]
    curves = [Curve("measured", sizes, seconds), Curve("least-squares line", sizes, fitted)]
    title = TITLES.get(row["work"], row["work"])
    drawn = line_chart(curves, title=title, x_label=row["unit"], y_label="seconds")
    caption = element("figcaption", escape(f"R squared of the line: {row['r_squared']:.4f}"))
    return element("figure", element("h3", escape(title)) + legend(curves) + drawn + caption, class_="card")


def write_page(output: Path) -> None:
    """Write the page of what results.json holds."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks.html"))
    write_page(parser.parse_args().output)
