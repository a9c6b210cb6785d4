"""One HTML page of benchmarks/results.json: the ratios as a table, and every cost against its size as a chart.

python benchmarks/bench_page.py --output runs/benchmarks.html
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distilhash.experiments.charts import DASHES, Line, line_chart
from distilhash.experiments.page import Panel, templates
from readme_tables import SPEED
from sidebyside import RESULTS

TEMPLATE = Path(__file__).with_suffix(".html.j2")
TITLES = {
    "cost_encode": "Encoding CIFAR-10 at 32 pixels",
    "cost_distill": "One epoch of distilling CIFAR-10 at 32 pixels",
    "cost_map": "mAP@all of 100 queries, 64 bits",
    "cost_hamming": "Distances of 100 queries, 64 bits",
}


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    scaled = [row for row in rows if "sizes" in row]
    return templates().from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        machine=rows[0]["settings"]["machine"] if rows else "none yet",
        rows=[row for row in rows if "sizes" not in row],
        panels=[panel(row) for row in scaled],
        fits=[(TITLES.get(row["work"], row["work"]), row["r_squared"]) for row in scaled],
        names=SPEED,
        rate=rate,
    )  # fmt: skip


def rate(value: float) -> str:
    """Three or four digits: 8.58, 459, 11,617."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def panel(row: dict[str, Any]) -> Panel:
    """Measured seconds and the line through them."""
    sizes, seconds = row["sizes"], row["seconds"]
    fitted = [row["seconds_for_none"] + row["seconds_for_each"] * size for size in sizes]
    lines = [
        Line("measured", sizes, seconds, "neutral-1"),
        Line("least-squares line", sizes, fitted, "neutral-2", DASHES[1]),
    ]
    title = TITLES.get(row["work"], row["work"])
    return Panel(title, lines, (), partial(line_chart, lines, title=title, x_label=row["unit"], y_label="seconds"))


def write_page(output: Path) -> None:
    """Write the page of what results.json holds."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks.html"))
    write_page(parser.parse_args().output)
