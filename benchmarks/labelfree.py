"""Hashing without labels on CIFAR-10: which way is better, and what is below and above it. Labels only score.

    python benchmarks/labelfree.py --run runs/demo --output results/labelfree.json

--run is the run of `distilhash demo`, whose split, student and teacher's features are read. Everything is fitted to the
database images without their labels. The method is chosen by queries from the training part, which no hasher here was
fitted to; the split's own queries are then asked once.

    student, itq       principal components of the student's features, rotated
    student, pseudo    CSQ on clusters of the teacher's features, the whole student trained
    teacher, itq       the frozen teacher's features, rotated
    student, random    signs of random projections of the student's centred features: the floor
    nothing            the share of relevant images, which a random ranking scores
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from distilhash.checkpoint import load_hasher, load_student
from distilhash.codes import pack
from distilhash.config import DemoConfig, FitConfig
from distilhash.data.cifar10 import load_cifar10
from distilhash.data.splits import Split
from distilhash.evaluation.metrics import mean_average_precision, relevant_share
from distilhash.experiments.arms import cropped_teacher
from distilhash.experiments.presets import demo
from distilhash.inference import encode, head_inputs
from distilhash.models import new_hasher
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory
from distilhash.training.teacher_features import compute_teacher_features
from distilhash.training.unlabelled import PseudoLabelled, itq, pseudo_classes

METHODS = ("student, itq", "student, pseudo", "teacher, itq", "student, random")
CHOOSING = 1_000  # queries by which the method is chosen


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.images = load_cifar10()
        seed = json.loads((options.run / "config.json").read_text())["seed"]
        self.run = options.run / str(seed)
        self.split = Split.load(self.run / "split.json")
        self.student = load_student(options.student or self.run / "distill")[0]
        self.preset = demo(DemoConfig(seed=seed))
        self.hash = dataclasses.replace(self.preset.hash, bits=options.bits, epochs=options.epochs, seed=seed)
        chosen = np.random.default_rng(seed).permutation(self.split.train)[:CHOOSING]
        self.parts = {"database": self.split.database, "choosing": np.sort(chosen), "query": self.split.query}

    def rows(self) -> list[dict[str, object]]:
        labels = {part: np.asarray(self.images.labels)[indices] for part, indices in self.parts.items()}
        rows = []
        for method in METHODS:
            began = time.monotonic()
            codes = self.codes(method)
            row = {"method": method, "seconds": round(time.monotonic() - began, 1)}
            for part, name in (("choosing", "choosing_map_at_all"), ("query", "map_at_all")):
                row[name] = mean_average_precision(
                    codes[part], codes["database"], labels[part], labels["database"], num_bits=self.options.bits
                )
            rows.append(row)
            print(row, flush=True)
        share = {part: relevant_share(labels[part], labels["database"]) for part in ("choosing", "query")}
        rows.append(
            {
                "method": "nothing",
                "choosing_map_at_all": share["choosing"],
                "map_at_all": share["query"],
                "seconds": 0.0,
            }
        )
        about = {
            "dataset": "cifar10", "protocol": f"{self.split.protocol}, database {len(self.split.database):,}",
            "bits": self.options.bits, "seed": self.split.seed, "queries": len(self.split.query),
            "clusters": self.options.clusters, "hash_epochs": self.options.epochs,
        }  # fmt: skip
        return [row | about for row in rows]

    def codes(self, method: str) -> dict[str, np.ndarray]:
        if method == "student, pseudo":
            hasher = self.pseudo_hasher()
            return {part: encode(self.images, indices, hasher).packed for part, indices in self.parts.items()}
        features = self.teacher_features() if method == "teacher, itq" else self.student_features()
        if method == "student, random":
            draws = np.random.default_rng(0).normal(size=(features["database"].shape[1], self.options.bits))
            mean = features["database"].mean(axis=0)
            return {part: pack((f - mean) @ draws) for part, f in features.items()}
        found = itq(features["database"], self.options.bits)
        return {part: pack(f @ found.weight.T + found.bias) for part, f in features.items()}

    def student_features(self) -> dict[str, np.ndarray]:
        return {part: head_inputs(self.images, indices, self.student) for part, indices in self.parts.items()}

    def teacher_features(self) -> dict[str, np.ndarray]:
        cached = np.union1d(self.split.unlabelled, self.split.query)
        cache = compute_teacher_features(
            self.images,
            cached,
            cropped_teacher(self.preset),
            self.run / "teacher_features",
            precision="auto",
        )[0]
        return {part: cache[np.searchsorted(cached, wanted)] for part, wanted in self.parts.items()}

    def pseudo_hasher(self):
        options, database = self.options, self.split.database
        features = self.teacher_features()["database"]
        classes = pseudo_classes(features, np.arange(len(features)), options.clusters, self.hash.seed)
        settings = {"stage": "labelfree", "clusters": options.clusters, "epochs": options.epochs, "bits": options.bits}
        run = RunDirectory(options.place, settings, resume=True)
        if not run.finished:
            images = PseudoLabelled(self.images, database, classes)
            hashing.train_hasher(images, database, new_hasher(self.student, self.hash), self.hash, run)
            self.student = load_student(options.student or self.run / "distill")[0]  # training has moved its weights
        return load_hasher(options.place)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--student", type=Path, help="another distilled student; left out: the run's")
    parser.add_argument("--place", type=Path, default=Path("runs/labelfree"), help="of the pseudo-classes' hasher")
    parser.add_argument("--output", type=Path, default=Path("results/labelfree.json"))
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=FitConfig().clusters)
    parser.add_argument("--epochs", type=int, default=FitConfig().hash_epochs, help="of the pseudo-classes' hasher")
    options = parser.parse_args()
    rows = Bench(options).rows()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    best = max(rows[:2], key=lambda row: row["choosing_map_at_all"])
    print(f"the better one, by the choosing queries: {best['method']}")


if __name__ == "__main__":
    main()
