"""Tune every arm alike: a grid of learning rates and epochs of hashing, scored on the validation set alone.

    python benchmarks/tune.py --run runs/tune --output results/tuning.json
    python benchmarks/tune.py --preset desktop --arms scratch teacher_frozen

Each setting trains one hasher on the labels without the validation set, whose images are then searched in each other;
what a preset takes is the best of its arm and framework there, by the mean over code lengths. The
queries' mAP is in each row, too: after the choice, to show whether the validation set ranks as the queries do. Rows are
kept as they come, and a stopped run goes on.
"""

import argparse
import dataclasses
import json
from itertools import product
from pathlib import Path
from statistics import fmean

from distilhash.checkpoint import load_hasher
from distilhash.config import DemoConfig, ReproduceConfig
from distilhash.data.loading import open_readable, split_of
from distilhash.experiments.arms import Arms, cropped_teacher
from distilhash.experiments.presets import FRAMEWORKS, demo, desktop_cifar10, keys_of
from distilhash.models import new_hasher
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory

# Of each arm the rate that moves its weights: Muon's of kernels, AdamW's of a head alone.
GRIDS = {
    "teacher_frozen": {"learning_rate": (0.002, 0.006, 0.02, 0.06), "epochs": (6, 30)},
    "distilled": {"muon_lr": (0.001, 0.002, 0.005), "epochs": (3, 6, 12)},
    "scratch": {"muon_lr": (0.02, 0.05, 0.1), "epochs": (6, 30, 90)},
    "teacher_finetuned": {"muon_lr": (0.002, 0.005, 0.02), "epochs": (2, 6)},
}
PRESETS = {"demo": demo(DemoConfig()), "desktop": desktop_cifar10()}


def main() -> None:
    """Train and score what is missing of the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/tune"))
    parser.add_argument("--output", type=Path, default=Path("results/tuning.json"))
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--arms", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS))
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 64])
    options = parser.parse_args()
    preset = dataclasses.replace(PRESETS[options.preset], measure_every=1)  # with a validation set
    images = open_readable("cifar10", labelled=True)
    whole = split_of(images, "cifar10", "cifar10", 0, None, needed=True)
    split = whole.cut(0, train=preset.train_size, database=preset.database_size)
    run = RunDirectory(options.run, {"stage": "tune", "preset": options.preset}, resume=True)
    arms = Arms(preset, images, split, cropped_teacher(preset), 0, run)
    rows = json.loads(options.output.read_text()) if options.output.exists() else []
    done = {json.dumps(row["setting"]) for row in rows}
    for arm in options.arms:
        wanted = ReproduceConfig(
            arms=arm, frameworks=",".join(options.frameworks), seeds="0", bits=",".join(map(str, options.bits))
        )
        for rate, epochs, key in product(*GRIDS[arm].values(), keys_of(preset, wanted)):
            chosen = dict(zip(GRIDS[arm], (rate, epochs), strict=True))
            setting = {"preset": options.preset, "arm": arm, "framework": key.framework, "bits": key.bits, **chosen}
            if json.dumps(setting) in done:
                continue
            config = dataclasses.replace(preset.hash_config(key), **chosen)
            own = RunDirectory(options.run / "-".join(map(str, setting.values())), setting, resume=True)
            if not own.finished:
                features_ND = arms.rows(split.fit) if config.freeze_backbone else None
                hasher = new_hasher(arms.backbone(arm), config)
                hashing.train_hasher(images, split.fit, hasher, config, own, features_ND=features_ND)
            trained = load_hasher(own.path)[0]
            scores = {**arms.measure(trained), "map_at_all": arms.test_map(trained)}
            rows.append({"setting": setting, **{name: round(value, 4) for name, value in scores.items()}})
            print(rows[-1], flush=True)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(rows, indent=1) + "\n")
    for arm, framework in product(GRIDS, FRAMEWORKS):
        place = {"preset": options.preset, "arm": arm, "framework": framework}
        scores: dict[str, list[float]] = {}  # of each setting, at every length
        for row in rows:
            if place.items() <= row["setting"].items():
                chosen = {name: row["setting"][name] for name in GRIDS[arm]}
                scores.setdefault(json.dumps(chosen), []).append(row["validation_map"])
        if scores:
            print(arm, framework, "best on validation, mean over lengths:", max(scores, key=lambda s: fmean(scores[s])))


if __name__ == "__main__":
    main()
