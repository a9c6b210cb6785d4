"""What each step from the published recipe to this project's is worth, at the demo's sizes and one seed.

    python benchmarks/ablation.py --run runs/ablation --output results/ablation.json

All students are distilled on the demo's 17,000 images of CIFAR-10 at 32 pixels from one teacher (EfficientNet-Lite0 at
128 pixels) and hashed by CSQ to 64 bits on its 5,000 labels. "recipe" is the published one: raw features by MSE, Adam
at a constant 1e-4, batches of 64, PyTorch's initial weights, and images that are flipped and cropped anew, here in
VIEWS cached versions; its epochs are a stated share of the published 160. The hashers are ours (3 epochs) and the
published RMSprop at 1e-5 (30 epochs). Rows are kept as they come, and a run that was stopped goes on.
"""

import argparse
import dataclasses
import json
from itertools import product
from pathlib import Path

import numpy as np

from distilhash.checkpoint import load_hasher, load_student
from distilhash.config import DemoConfig, DistillConfig
from distilhash.data.loading import open_readable, split_of
from distilhash.evaluation.metrics import mean_average_precision
from distilhash.experiments.arms import cropped_teacher
from distilhash.experiments.presets import demo
from distilhash.files import provenance
from distilhash.inference import encode
from distilhash.models import new_hasher, new_student
from distilhash.training import distill as distillation
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory

VIEWS, PUBLISHED_EPOCHS = 4, 160
PRESET = demo(DemoConfig())
ADAMW = dataclasses.replace(PRESET.distill, optimizer="adamw")
ADAM = dataclasses.replace(PRESET.distill, loss="raw", optimizer="published", learning_rate=1e-4, weight_decay=0.0)
RECIPE = dataclasses.replace(ADAM, batch_size=64, views=VIEWS)
DISTILLED: dict[str, DistillConfig | None] = {  # in the order of computing
    "recipe, 16 epochs": dataclasses.replace(RECIPE, epochs=16),
    "from scratch": None,
    "prototypes, Muon": PRESET.distill,
    "raw, Adam": ADAM,
    "raw, Muon": dataclasses.replace(PRESET.distill, loss="raw"),
    "prototypes, AdamW": ADAMW,
    "standardised, Muon": dataclasses.replace(PRESET.distill, loss="standardised"),
    "recipe, 40 epochs": dataclasses.replace(RECIPE, epochs=40),
}
HASHED = {
    "Muon, 3 epochs": PRESET.hash,
    "RMSprop, 30 epochs": dataclasses.replace(
        PRESET.hash, optimizer="published", learning_rate=1e-5, weight_decay=1e-5, epochs=30, batch_size=64
    ),
}


def main() -> None:
    """Distil, hash and score every pair that is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--output", type=Path, default=Path("results/ablation.json"))
    options = parser.parse_args()
    images = open_readable("cifar10", labelled=True)
    split = split_of(images, "cifar10", "cifar10", 0, None, needed=True)
    split = split.cut(0, query=None, train=PRESET.train_size, database=PRESET.database_size)
    every = np.union1d(split.unlabelled, split.query)  # as the demo caches them, whose features/ may be put here
    rows = json.loads(options.output.read_text()) if options.output.exists() else []
    done = {(row["distilled"], row["hashed"]) for row in rows}
    for name, hashed in product(DISTILLED, HASHED):
        if (name, hashed) in done:
            continue
        plan, head = DISTILLED[name], HASHED[hashed]
        initial = "published" if name.startswith("recipe") else "he"
        student = new_student(dataclasses.replace(PRESET.student, initial=initial), 0)
        if plan:
            path = options.run / name
            if not (path / "model" / "model.safetensors").exists():
                features, teacher = options.run / f"features-{plan.views}", cropped_teacher(PRESET)
                run = RunDirectory(path, {"distilled": name}, resume=True)
                distillation.distill(
                    images, split.unlabelled, teacher, student, plan, run, features=features, features_of=every
                )
            student = load_student(path)[0]
        run = RunDirectory(options.run / f"{name}, {hashed}", {"hashed": hashed}, resume=True)
        if not run.finished:
            hashing.train_hasher(images, split.train, new_hasher(student, head), head, run)
        hasher = load_hasher(run.path)[0]
        asked, searched = (encode(images, indices, hasher) for indices in (split.query, split.database))
        score = mean_average_precision(
            asked.packed, searched.packed, asked.labels, searched.labels, num_bits=hasher.num_bits
        )
        epochs = plan.epochs if plan else 0
        row = {"distilled": name, "hashed": hashed, "map_at_all": round(score, 4), "epochs": epochs}
        row |= {"share_of_published_epochs": epochs / PUBLISHED_EPOCHS, "machine": provenance()["machine"]}
        rows.append(row)
        print(rows[-1], flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
