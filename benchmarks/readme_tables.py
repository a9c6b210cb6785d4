"""The README's tables, written between two marks each from what results/ and benchmarks/results.json hold.

python benchmarks/readme_tables.py                                             # rewrite README.md
python benchmarks/readme_tables.py --comparison runs/reproduce/results.json    # keep a comparison's cells before
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from distilhash.experiments.tables import markdown_table

ROOT = Path(__file__).parents[1]
END = "<!-- end -->"
# results.json of other machines and of earlier code, by what heads their columns.
OTHERS = {
    "AVX2, earlier": ROOT / "benchmarks" / "results-avx2.json",
    "bfloat16 by AMX, earlier still": ROOT / "benchmarks" / "results-amx.json",
}
COMPARISON = ROOT / "results" / "cifar10-desktop.json"
DRAWN = ("curves", "precision_at_n")  # of a cell: what only the page shows
NAMES = {
    "distilled": "student, distilled",
    "scratch": "the same student, from scratch",
    "teacher_frozen": "teacher, frozen, with a head",
}

# What a row of benchmarks/results.json is called, in the order of the table.
SPEED = {
    "distill_224": "a distillation step, v1 at 224 pixels",
    "distill_64": "a distillation step, v1 at 64 pixels",
    "teacher_pass": "the teacher's pass, EfficientNet-Lite0 at 224 pixels",
    "hash_224": "a hashing step, v1 at 224 pixels",
    "encode_224": "photographs to codes, v1 at 224 pixels",
    "encode_64": "photographs to codes, v1 at 64 pixels",
    "overlap": "photographs to codes in float32, both halves at once",
    "overlap_bfloat16": "photographs to codes in bfloat16, both halves at once",
    "beside": "distilling beside a process that keeps one of two cores busy",
    "map": "mAP@all, 1,000 queries, 54,000 codes of 64 bits, one core",
}


def demo_table(rows: list[dict]) -> str:
    """One line for each arm: mean and range over seeds."""
    by_arm = defaultdict(list)
    for row in rows:
        by_arm[row["arm"], row["framework"]].append(row)
    lines = [
        "| arm | framework | mAP@all, mean over seeds (lowest to highest) | parameters | multiply-adds |",
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


def mosaics_table(cells: list[dict]) -> str:
    """One line for each framework, beside what costs nothing."""
    lines = [
        "| framework | bits | mAP@5000 | random ranking | untrained hasher |",
        "|---|---|---|---|---|",
        *(
            f"| {cell['framework'].upper()} | {cell['bits']} | {cell['map_at_5000']:.3f} | "
            f"{cell['relevant_share']:.3f} | {cell['untrained_map_at_5000']:.3f} |"
            for cell in cells
        ),
    ]
    first = cells[0]
    lines += ["", f"Mosaics, {first['protocol'].removeprefix('lists: ')}; {first['backbone']}, seed {first['seed']}."]
    return "\n".join(lines) + "\n"


def speed_table(rows: list[dict]) -> str:
    """One line for each work: what it was compared with, the ratio on each machine, and what we aim at."""
    machines = {"times as fast": rows}
    machines |= {head: json.loads(file.read_text(encoding="utf-8")) for head, file in OTHERS.items()}
    found = {head: {row["work"]: row for row in rows} for head, rows in machines.items()}
    anywhere = {work: row for works in reversed(found.values()) for work, row in works.items()}
    shown = [work for work in SPEED if work in anywhere]
    lines = [
        f"| work | against | {' | '.join(found)} | aim |",
        f"|---|---|{'---|' * len(found)}---|",
        *(
            f"| {SPEED[work]} | {anywhere[work]['peer']} | "
            f"{' | '.join(_ratio(works.get(work)) for works in found.values())} | {anywhere[work]['least']:g} |"
            for work in shown
        ),
    ]
    names = [
        ", ".join(sorted({works[work]["settings"]["machine"] for work in shown if work in works}))
        for works in found.values()
    ]
    pairs = sorted({anywhere[work]["pairs"] for work in shown})
    lines.append("")
    lines.append(
        f"Both sides in turn, median of {' or '.join(map(str, pairs))} pairs (lowest to highest); the peer in float32. "
        f"The columns were measured on: {'; '.join(names)}."
    )
    return "\n".join(lines) + "\n"


def _ratio(row: dict | None) -> str:
    if row is None:
        return "-"
    lowest, highest = row["spread"]
    return f"{row['ratio']:.3g} ({lowest:.3g} to {highest:.3g})"


TABLES = {
    "demo": (demo_table, ROOT / "results" / "demo.json"),
    "comparison": (markdown_table, COMPARISON),
    "mosaics": (mosaics_table, ROOT / "results" / "mosaics.json"),
    "speed": (speed_table, ROOT / "benchmarks" / "results.json"),
}


def with_tables(readme: str) -> str:
    """The README with its tables made anew."""
    for name, (table, results) in TABLES.items():
        begin = f"<!-- table: {name} -->\n"
        before, rest = readme.split(begin)
        after = rest.split(END, 1)[1]
        readme = f"{before}{begin}{table(json.loads(results.read_text(encoding='utf-8')))}{END}{after}"
    return readme


def keep(comparison: Path) -> None:
    """Put the cells of a comparison under results/."""
    cells = json.loads(comparison.read_text(encoding="utf-8"))
    kept = [{key: value for key, value in cell.items() if key not in DRAWN} for cell in cells]
    COMPARISON.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparison", type=Path, metavar="FILE", help="results.json of `distilhash reproduce`")
    options = parser.parse_args()
    if options.comparison:
        keep(options.comparison)
    path = ROOT / "README.md"
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
