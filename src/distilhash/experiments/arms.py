"""The arms of a comparison, the distilled student and its baselines: each trained once from what others have computed.

    teacher_features/              of every image that is looked at; one cache for all arms
    distill/                       the distilled student, shared by all hashers on it
    hash-ARM-FRAMEWORK-BITS/       a hasher
    codes/                         its codes of the query and database images
    seconds.json                   what each stage took, over all attempts

The baselines are the same student from scratch, the frozen teacher with a head, and the fine-tuned teacher. All are
hashed on the same labels. A finished stage is not repeated, so an interrupted comparison continues.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.checkpoint import load_hasher, load_student
from distilhash.codes import CodeTable
from distilhash.config import as_dict
from distilhash.data.sources import ImageSource
from distilhash.data.splits import Split
from distilhash.evaluation.metrics import evaluate_tables
from distilhash.experiments.presets import Preset
from distilhash.experiments.trials import TrialKey
from distilhash.files import fingerprint_of_indices, read_json, write_json
from distilhash.inference import encode, encode_features
from distilhash.models import Backbone, HasherNetwork, Teacher, new_hasher, new_student, open_teacher
from distilhash.training import distill as distillation
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory
from distilhash.training.teacher_features import compute_teacher_features

PARTS = ("query", "database")  # of a split, whose codes are kept


def cropped_teacher(preset: Preset, *, trainable: bool = False) -> Teacher:
    """The preset's teacher, which in its own arms sees the same part of an image as the student does in hashing."""
    seen = new_student(preset.student, 0).input
    if preset.hash.margin is not None:
        seen = dataclasses.replace(seen, margin=preset.hash.margin)
    return open_teacher(preset.teacher, trainable=trainable, crop_mode=seen)


@dataclasses.dataclass(frozen=True)
class Arms:
    """What the arms of one split and one seed share."""

    preset: Preset
    images: ImageSource
    split: Split
    teacher: Teacher  # of cropped_teacher()
    seed: int
    run: RunDirectory  # of the whole comparison
    best_on_test: bool = False

    @property
    def path(self) -> Path:
        """The directory of this seed."""
        return self.run.path / str(self.seed)

    @property
    def labelled(self) -> np.ndarray:
        """Indices of the images that hashers are trained on."""
        return self.preset.labelled(self.split)

    def hasher(self, key: TrialKey) -> HasherNetwork:
        """The trained hasher of a trial after its last epoch."""
        path = self.path / key.stage
        if not (path / "model" / "model.safetensors").exists():
            config = self.preset.hash_config(key)
            features_ND = self.rows(self.labelled) if config.freeze_backbone else None
            hasher = new_hasher(self.backbone(key.arm), config)
            every = self.preset.measure_every
            with self._timed(key.stage):
                hashing.train_hasher(
                    self.images, self.labelled, hasher, config, self._stage(path), features_ND=features_ND,
                    measure=self.measure if every else None, every=every or 1,
                )  # fmt: skip
        return load_hasher(path)[0]

    def measure(self, hasher: HasherNetwork) -> dict[str, float]:
        """What is measured after an epoch: the validation set, each image searched in the others.

        No hasher was fitted to one of them, so they rank arms and epochs as the queries do; images that were fitted
        would flatter what learns by heart. They have no other labels than training has, whatever the protocol.
        """
        found = {"validation_map": self._map(hasher, self.split.validation, self.split.validation)}
        return found | ({"test_map": self.test_map(hasher)} if self.best_on_test else {})

    def test_map(self, hasher: HasherNetwork) -> float:
        """The mAP of the queries."""
        return self._map(hasher, self.split.query, self.split.database)

    def _map(self, hasher: HasherNetwork, query: np.ndarray, database: np.ndarray) -> float:
        tables = (self.codes(hasher, indices) for indices in (query, database))
        at = self.preset.at
        return float(evaluate_tables(*tables, at=at)["map_at_all" if at is None else f"map_at_{at}"])

    def codes(self, hasher: HasherNetwork, indices: np.ndarray, provenance: dict[str, Any] | None = None) -> CodeTable:
        """The codes of ``images[indices]``; only the head runs where the teacher's features are known."""
        if hasher.freeze_backbone:
            return encode_features(self.rows(indices), self.images, indices, hasher, provenance=provenance)
        return encode(self.images, indices, hasher, provenance=provenance)

    def saved_codes(self, key: TrialKey, hasher: HasherNetwork, part: str) -> CodeTable:
        """The codes of the "query" or "database" images by a trial's hasher, kept for the report."""
        path = codes_path(self.run.path, key, part)
        if not path.exists():
            indices = getattr(self.split, part)
            made = {"arm": key.arm, "framework": key.framework, "indices": fingerprint_of_indices(indices)}
            self.codes(hasher, indices, made).save(path)
        return CodeTable.load(path)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The teacher's features (n, D) of images in the cache; the first call computes those of the whole cache."""
        distill = self.preset.distill
        path, cached = self._features
        with self._timed("teacher_features"):
            cache_VND = compute_teacher_features(
                self.images, cached, self.teacher, path, seed=self.seed, views=distill.cached_views,
                precision=distill.precision,
            )  # fmt: skip
        found: np.ndarray = cache_VND[0][np.searchsorted(cached, indices)]
        return found

    @property
    def _features(self) -> tuple[Path, np.ndarray]:
        """The teacher's feature cache and the indices of its images, ascending."""
        if self.preset.is_cut or self.preset.distill.cached_views > 1:
            return self.path / "teacher_features", np.union1d(self.split.unlabelled, self.split.query)
        return self.run.path / "teacher_features", np.arange(len(self.images))  # the same for every seed

    def seconds(self, key: TrialKey) -> float:
        """What the training of a trial took, with everything before it that it needed."""
        known = read_seconds(self.path)
        needed = {"distilled": ["teacher_features", "distill"], "teacher_frozen": ["teacher_features"]}
        return sum(known.get(stage, 0.0) for stage in [key.stage, *needed.get(key.arm, [])])

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a block to the stage's, over all attempts."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = read_seconds(self.path)
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - began, 2)
            write_json(self.path / "seconds.json", seconds)

    def backbone(self, arm: str) -> Backbone:
        """What the hasher of an arm is trained on; the student is distilled where it is not yet."""
        if arm == "scratch":
            return new_student(self.preset.student, self.seed)
        if arm == "teacher_frozen":
            return self.teacher
        if arm == "teacher_finetuned":
            return cropped_teacher(self.preset, trainable=True)
        path = self.path / "distill"
        if not (path / "model" / "model.safetensors").exists():
            config = dataclasses.replace(self.preset.distill, seed=self.seed)
            shared: dict[str, Any] = {}
            if (
                self.preset.hash.margin is None
            ):  # else distillation sees other crops than hashing, and has its own cache
                self.rows(self.split.unlabelled[:0])  # the teacher's pass over the images, timed by itself
                shared = dict(zip(("features", "features_of"), self._features, strict=True))
            with self._timed("distill"):
                distillation.distill(
                    self.images, self.split.unlabelled, self.teacher, new_student(self.preset.student, self.seed),
                    config, self._stage(path), **shared,
                )  # fmt: skip
        return load_student(path)[0]

    def _stage(self, path: Path) -> RunDirectory:
        settings = {"preset": as_dict(self.preset), "seed": self.seed, "stage": path.name}
        return RunDirectory(path, settings, resume=True)


def codes_path(run: str | Path, key: TrialKey, part: str) -> Path:
    """Where the "query" or "database" codes of a trial are kept."""
    return Path(run) / str(key.seed) / "codes" / f"{key.stage}-{part}.safetensors"


def read_seconds(path: str | Path) -> dict[str, float]:
    """What each stage of a seed took so far, seconds."""
    file = Path(path) / "seconds.json"
    known: dict[str, float] = read_json(file, "stage times") if file.exists() else {}
    return known
