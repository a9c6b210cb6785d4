"""How far hashing may move a network that has learned already: where the default rate of Muon comes from.

    python benchmarks/hash_rates.py --run runs/hash-rates --output results/hash-rates.json

The students of the desktop comparison, distilled and from scratch, are hashed at several rates under both frameworks on
the split of a seed that no table uses. They are scored on images that are no query of any table's split and that no
hasher here was trained on: so the rate is chosen without a look at what it is reported on.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from distilhash.checkpoint import load_hasher, load_student
from distilhash.data.loading import open_readable, split_of
from distilhash.data.sources import ImageSource
from distilhash.data.splits import Split
from distilhash.evaluation.metrics import mean_average_precision
from distilhash.experiments.arms import cropped_teacher
from distilhash.experiments.presets import desktop_cifar10
from distilhash.inference import encode
from distilhash.models import Backbone, new_hasher, new_student
from distilhash.training import distill as distillation
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory

SEED = 3
QUERIES, EVERY = 1_000, 2  # images that ask, and one in how many of the others that are searched
RATES = {"distilled": (0.02, 0.005, 0.002, 0.001), "scratch": (0.02, 0.05, 0.1)}


def main() -> None:
    """Distil once, hash at every rate, and keep the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/hash-rates"))
    parser.add_argument("--output", type=Path, default=Path("results/hash-rates.json"))
    options = parser.parse_args()
    images = open_readable("cifar10", labelled=True)
    split = split_at(images, SEED)
    query, database = scored(images, split)
    rows = []
    for arm, rates in RATES.items():
        for framework in ("csq", "dch"):
            for rate in rates:
                run = RunDirectory(options.run / f"{arm}-{framework}-{rate}", {"stage": "hash rates"}, resume=True)
                if not run.finished:
                    plan = dataclasses.replace(desktop_cifar10().hash, framework=framework, muon_lr=rate, seed=SEED)
                    backbone = new_student(desktop_cifar10().student, SEED)
                    if arm == "distilled":
                        backbone = distilled(images, split, options.run)
                    hashing.train_hasher(images, split.fit, new_hasher(backbone, plan), plan, run)
                hasher = load_hasher(run.path)[0]
                asked, searched = (encode(images, indices, hasher) for indices in (query, database))
                score = mean_average_precision(
                    asked.packed, searched.packed, asked.labels, searched.labels, num_bits=hasher.num_bits
                )
                rows.append({"arm": arm, "framework": framework, "muon_lr": rate, "map_at_all": score})
                print(rows[-1], flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")


def split_at(images: ImageSource, seed: int) -> Split:
    """The published protocol's split of a seed."""
    split = split_of(images, "cifar10", "cifar10", seed, None, needed=True)
    assert split is not None
    return split


def scored(images: ImageSource, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Queries and database, of which no table has a query and no hasher here a label."""
    taken = [split.query, split.train, *(split_at(images, seed).query for seed in desktop_cifar10().seeds)]
    free = np.setdiff1d(split.database, np.concatenate(taken))
    query = np.random.default_rng(0).choice(free, QUERIES, replace=False)
    return query, np.setdiff1d(free, query)[::EVERY]


def distilled(images: ImageSource, split: Split, place: Path) -> Backbone:
    """The student of the comparison, distilled on this split once."""
    path, plan = place / "distill", desktop_cifar10()
    if not (path / "model" / "model.safetensors").exists():
        config = dataclasses.replace(plan.distill, seed=SEED)
        run = RunDirectory(path, {"stage": "distill"}, resume=True)
        distillation.distill(
            images, split.unlabelled, cropped_teacher(plan), new_student(plan.student, SEED), config, run
        )
    return load_student(path)[0]


if __name__ == "__main__":
    main()
