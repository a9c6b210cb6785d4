"""The tables of the documents, written between two marks each from what results/ and benchmarks/results.json hold.

python benchmarks/readme_tables.py                                             # rewrite README.md and docs/*.md
python benchmarks/readme_tables.py --comparison runs/reproduce/results.json    # keep a comparison's trials before
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from distilhash.experiments.tables import markdown_table

ROOT = Path(__file__).parents[1]
END = "<!-- end -->"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMPARISON = ROOT / "results" / "cifar10-desktop.json"
DRAWN = ("curves", "precision_at_n")  # of a trial: what only the report shows
NAMES = {
    "distilled": "distilled student",
    "scratch": "the same student from scratch",
    "teacher_frozen": "frozen teacher with a hash layer",
}

# What a row of benchmarks/results.json is called, in the order of the table: rows with the same networks on both sides.
SPEED = {
    "encode_v1_224": "photographs to codes, v1 at 224 pixels",
    "encode_v1_64": "photographs to codes, v1 at 64 pixels",
    "distill_total": "a whole distillation, ResNet50 into v1 at 224 pixels, 8 epochs",
    "hash_224": "a step of hashing, v1 at 224 pixels",
    "teacher_pass": "features of a frozen teacher, EfficientNet-Lite0 at 224 pixels",
    "map": "mAP@all, 1,000 queries, 54,000 codes of 64 bits, one core",
}


def demo_table(rows: list[dict]) -> str:
    """One line for each arm: mean and range over seeds."""
    by_arm = defaultdict(list)
    for row in rows:
        by_arm[row["arm"], row["framework"]].append(row)
    lines = [
        "| method | framework | mAP@all, mean over seeds (lowest to highest) | parameters | multiply-adds |",
        "|---|---|---|---|---|",
    ]
    for (arm, framework), group in by_arm.items():
        scores = [row["map_at_all"] for row in group]
        lines.append(
            f"| {NAMES[arm]} | {framework.upper()} | {sum(scores) / len(scores):.3f} ({min(scores):.3f} to "
            f"{max(scores):.3f}) | {group[0]['parameters'] / 1e6:.2f} M | {group[0]['macs'] / 1e6:.1f} M |"
        )
    first = rows[0]
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    lines.append("")
    lines.append(
        f"CIFAR-10, protocol {first['protocol']}, {first['bits']} bits, seeds {seeds}; expected AP, last epoch."
    )
    return "\n".join(lines) + "\n"


def why_chart(rows: list[dict]) -> str:
    """mAP and multiply-adds under CSQ as bars, in HTML that follows the site's colours."""
    rows = [row for row in rows if row["framework"] == "csq"]
    most = {key: max(row[key] for row in rows) for key in ("map_at_all", "macs")}
    lines = ['<div class="picture bars">']
    for arm in dict.fromkeys(row["arm"] for row in rows):
        group = [row for row in rows if row["arm"] == arm]
        score, macs = sum(row["map_at_all"] for row in group) / len(group), group[0]["macs"]
        for key, value, shown in (("map_at_all", score, f"mAP {score:.3f}"), ("macs", macs, f"{macs / 1e6:.0f} M")):
            name = NAMES[arm] if key == "map_at_all" else "multiply-adds"
            width = 100 * value / most[key]
            bar = f'<i class="{key}"><b style="width: {width:.0f}%"></b></i>'
            lines.append(f"<span>{name}</span>{bar}<span>{shown}</span>")
    return "\n".join([*lines, "</div>"]) + "\n"


def mosaics_table(rows: list[dict]) -> str:
    """One line for each framework, beside what costs nothing."""
    lines = [
        "| framework | bits | mAP@5000 | random ranking | untrained hasher |",
        "|---|---|---|---|---|",
        *(
            f"| {row['framework'].upper()} | {row['bits']} | {row['map_at_5000']:.3f} | "
            f"{row['relevant_share']:.3f} | {row['untrained_map_at_5000']:.3f} |"
            for row in rows
        ),
    ]
    first = rows[0]
    lines += ["", f"Mosaics, {first['protocol'].removeprefix('lists: ')}; {first['backbone']}, seed {first['seed']}."]
    return "\n".join(lines) + "\n"


def speed_table(rows: list[dict]) -> str:
    """One line for each work: what it was compared with, and the ratio."""
    found = {row["work"]: row for row in rows}
    shown = [found[work] for work in SPEED if work in found]
    lines = [
        "| work | against | times as fast |",
        "|---|---|---|",
        *(f"| {SPEED[row['work']]} | {row['peer']} | {_ratio(row)} |" for row in shown),
    ]
    machines = "; ".join(sorted({row["settings"]["machine"] for row in shown}))
    pairs = " or ".join(map(str, sorted({row["pairs"] for row in shown})))
    lines += ["", f"Median of {pairs} pairs (lowest to highest), both sides in float32; measured on {machines}."]
    return "\n".join(lines) + "\n"


def near_duplicates_table(rows: list[dict]) -> str:
    """A line for each way to copy, a column for each method."""
    heads = [
        f"{row['method']}, {'measured ' if row['measured'] else ''}{row['radius']} of {row['bits']}" for row in rows
    ]
    lines = [f"| copy | {' | '.join(heads)} |", f"|---|{len(rows) * '---|'}"]
    for copy in ("all", *rows[0]["copies"]):
        found = [row if copy == "all" else row["copies"][copy] for row in rows]
        cells = (f"{each['recall']:.3f} / {each['precision']:.3f}" for each in found)
        lines.append(f"| {copy} | {' | '.join(cells)} |")
    first = rows[0]
    lines += ["", f"{first['photos']} photographs, {len(first['copies'])} copies of each; {first['machine']}."]
    return "\n".join(lines) + "\n"


def _ratio(row: dict) -> str:
    lowest, highest = row["spread"]
    return f"{row['ratio']:.3g} ({lowest:.3g} to {highest:.3g})"


TABLES = {
    "demo": (demo_table, ROOT / "results" / "demo.json"),
    "why": (why_chart, ROOT / "results" / "demo.json"),
    "comparison": (markdown_table, COMPARISON),
    "mosaics": (mosaics_table, ROOT / "results" / "mosaics.json"),
    "near-duplicates": (near_duplicates_table, ROOT / "results" / "near_duplicates.json"),
    "speed": (speed_table, ROOT / "benchmarks" / "results.json"),
}


def with_tables(text: str) -> str:
    """A document with its tables made anew."""
    for name, (table, results) in TABLES.items():
        begin = f"<!-- table: {name} -->\n"
        if begin in text:
            before, rest = text.split(begin)
            after = rest.split(END, 1)[1]
            text = f"{before}{begin}{table(json.loads(results.read_text(encoding='utf-8')))}{END}{after}"
    return text


def keep(comparison: Path) -> None:
    """Put the trials of a comparison under results/."""
    rows = json.loads(comparison.read_text(encoding="utf-8"))
    kept = [{key: value for key, value in row.items() if key not in DRAWN} for row in rows]
    COMPARISON.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparison", type=Path, metavar="FILE", help="results.json of `distilhash reproduce`")
    options = parser.parse_args()
    if options.comparison:
        keep(options.comparison)
    for path in DOCUMENTS:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
