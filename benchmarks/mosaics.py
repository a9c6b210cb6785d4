"""Multi-label hashing on a set that learns: the nuswide table on mosaics of CIFAR-10, in the published list format.

    python benchmarks/mosaics.py --runs runs --output results/mosaics.json

Mosaics are made (`distilhash.data.write_mosaics`) and go through `distilhash reproduce nuswide --budget desktop` for
the distilled student at 48 bits, which CSQ's Hadamard centres cannot have, with both frameworks. Beside each mAP@5000
stand two floors, measured on the same queries and database: the share of relevant images, which a random ranking
scores, and the same hasher before any training.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from distilhash.config import HashConfig, ReproduceConfig
from distilhash.data import write_mosaics
from distilhash.data.cifar10 import load_cifar10
from distilhash.data.loading import open_readable
from distilhash.data.splits import Split
from distilhash.evaluation.evaluate import evaluate_tables
from distilhash.experiments.presets import TABLES
from distilhash.experiments.runner import reproduce
from distilhash.inference import encode
from distilhash.training.networks import new_hasher, new_student

TRAIN, QUERY, DATABASE, BITS = 3_000, 500, 9_000, 48


def main() -> int:
    """Run it, keep the cells, and return the exit code: 1 where a floor is not passed clearly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where mosaics and run go")
    parser.add_argument("--output", type=Path, default=Path("results/mosaics.json"))
    options = parser.parse_args()
    folder, run = options.runs / "mosaics", options.runs / "reproduce-mosaics"
    write_mosaics(folder, load_cifar10(), train=TRAIN, query=QUERY, database=DATABASE)
    config = ReproduceConfig(images=str(folder), arms="distilled", bits=str(BITS), seeds="0")
    cells = reproduce("nuswide", run, config=config, resume=run.exists())
    untrained = floor(folder, run)
    print(f"random ranking {cells[0]['relevant_share']:.3f}, untrained hasher {untrained:.3f}")
    for cell in cells:
        cell["untrained_map_at_5000"] = untrained
        print(f"{cell['framework']} {cell['bits']} bits: mAP@5000 {cell['map_at_5000']:.3f}")
    kept = [{key: value for key, value in cell.items() if key != "curves"} for cell in cells]
    options.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0 if all(cell["map_at_5000"] > max(untrained, cell["relevant_share"]) + 0.1 for cell in cells) else 1


def floor(folder: Path, run: Path) -> float:
    """mAP@5000 of the hasher with its first weights."""
    images, split = open_readable(str(folder), labelled=True, quiet=True), Split.load(run / "0" / "split.json")
    student = new_student(TABLES["nuswide"]["desktop"]().stages.student, 0)
    hasher = new_hasher(student, HashConfig(bits=BITS))
    tables = [encode(images, indices, hasher) for indices in (split.query, split.database)]
    found: float = evaluate_tables(*tables, at=5000)["map_at_5000"]
    return found


if __name__ == "__main__":
    sys.exit(main())
