"""The README's tables, written from the JSON in results/ between two marks.

python benchmarks/readme_tables.py           # rewrite README.md
"""

import json
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- table: demo -->\n", "<!-- end -->"
NAMES = {
    "distilled": "student, distilled",
    "scratch": "the same student, from scratch",
    "teacher_frozen": "teacher, frozen, with a head",
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


def with_tables(readme: str) -> str:
    """The README with its tables made anew."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END, 1)[1]
    table = demo_table(json.loads((ROOT / "results" / "demo.json").read_text()))
    return f"{before}{BEGIN}{table}{END}{after}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
