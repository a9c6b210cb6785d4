"""The arms of a comparison: every way to a hasher, each made once from what the others have made already.

    teacher_features/                  of every image that an arm looks at; one cache, whatever the number of arms
    distill/                           the distilled student, one for all hashers on it
    hash-ARM-FRAMEWORK-BITS/           a hasher
    seconds.json                       what each stage took, over all attempts

Arms: the distilled student, the same student from scratch, the frozen teacher with a head, and the fine-tuned teacher;
all of them hashed on the same labels. A stage that is whole is not done again, so an interrupted comparison goes on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.checkpoint import load_hasher, load_student
from distilhash.codes import CodeTable
from distilhash.config import as_dict
from distilhash.data.sources import ImageSource
from distilhash.data.splits import Split
from distilhash.experiments.presets import Stages
from distilhash.files import read_json, write_json
from distilhash.inference import encode, encode_features
from distilhash.models import Backbone, Hasher, Teacher
from distilhash.training import distill as distillation
from distilhash.training import hash as hashing
from distilhash.training.networks import new_hasher, new_student, open_teacher
from distilhash.training.run import RunDirectory
from distilhash.training.teacher_features import compute_teacher_features


def framed_teacher(plan: Stages) -> Teacher:
    """The frozen teacher, which looks at the same part of an image as the student, in its own arms, too."""
    teacher = open_teacher(plan.teacher)
    teacher.input = teacher.input.with_crop_of(new_student(plan.student, 0).input)
    teacher.architecture["input"] = as_dict(teacher.input)
    return teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arms:
    """What the arms of one split and one seed share."""

    plan: Stages
    images: ImageSource
    split: Split
    labelled: np.ndarray  # indices of the images that hashers are trained on
    teacher: Teacher  # of framed_teacher()
    seed: int
    place: Path  # where the stages of this seed go
    features: Path  # the teacher's feature cache ...
    features_of: np.ndarray  # ... and the images in it, ascending
    run: RunDirectory  # of the whole comparison

    def hasher(
        self,
        arm: str,
        framework: str,
        bits: int,
        measure: Callable[[Hasher], dict[str, float]] | None = None,
        every: int = 1,
    ) -> Hasher:
        """The trained hasher of an arm, after its last epoch; ``measure`` and ``every`` as in ``train_hasher``."""
        path = self.path(arm, framework, bits)
        if not (path / "model" / "model.safetensors").exists():
            config = self.plan.hashing(arm, framework, bits, self.seed)
            features_ND = self.rows(self.labelled) if arm == "teacher_frozen" else None
            hasher = new_hasher(self._backbone(arm), config)
            with self.timed(path.name):
                hashing.train_hasher(
                    self.images, self.labelled, hasher, config, self._stage(path), features_ND=features_ND,
                    measure=measure, every=every,
                )  # fmt: skip
        return load_hasher(path)[0]

    def codes(self, hasher: Hasher, indices: np.ndarray, made: dict[str, Any]) -> CodeTable:
        """The code table of ``images[indices]``; only the head runs where the teacher's features are known."""
        if hasher.freeze_backbone:
            return encode_features(self.rows(indices), self.images, indices, hasher, provenance=made)
        return encode(self.images, indices, hasher, provenance=made)

    def path(self, arm: str, framework: str, bits: int) -> Path:
        """The run directory of a hasher."""
        return self.place / f"hash-{arm}-{framework}-{bits}"

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The teacher's features of some of the images in the cache."""
        with self.timed("teacher_features"):
            distill = self.plan.distill
            cache_ND = compute_teacher_features(
                self.images, self.features_of, self.teacher, self.features, seed=self.seed,
                views=distill.cached_views, precision=distill.precision, say=self.run.say,
            )[0]  # fmt: skip
        found: np.ndarray = cache_ND[np.searchsorted(self.features_of, indices)]
        return found

    def seconds(self, arm: str, framework: str, bits: int) -> float:
        """What the training of an arm took, with everything before it that it needed."""
        known = self.all_seconds()
        needed = {"distilled": ["teacher_features", "distill"], "teacher_frozen": ["teacher_features"]}.get(arm, [])
        return sum(known.get(stage, 0.0) for stage in [self.path(arm, framework, bits).name, *needed])

    def all_seconds(self) -> dict[str, float]:
        """What each stage took so far."""
        path = self.place / "seconds.json"
        known: dict[str, float] = read_json(path, "stage times") if path.exists() else {}
        return known

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a block to the stage's, over all attempts."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = self.all_seconds()
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - began, 2)
            self.place.mkdir(parents=True, exist_ok=True)
            write_json(self.place / "seconds.json", seconds)

    def _backbone(self, arm: str) -> Backbone:
        if arm == "distilled":
            return self._distilled()
        if arm == "scratch":
            return new_student(self.plan.student, self.seed)
        if arm == "teacher_frozen":
            return self.teacher
        finetuned = open_teacher(self.plan.teacher, trainable=True)
        finetuned.input = self.teacher.input
        finetuned.architecture["input"] = self.teacher.architecture["input"]
        return finetuned

    def _distilled(self) -> Backbone:
        path = self.place / "distill"
        if not (path / "model" / "model.safetensors").exists():
            self.rows(self.features_of[:0])  # the pass over the images, timed by itself
            config = dataclasses.replace(self.plan.distill, seed=self.seed)
            with self.timed("distill"):
                distillation.distill(
                    self.images, self.split.unlabelled, self.teacher, new_student(self.plan.student, self.seed), config,
                    self._stage(path), features=self.features, features_of=self.features_of,
                )  # fmt: skip
        return load_student(path)[0]

    def _stage(self, path: Path) -> RunDirectory:
        settings = {"plan": as_dict(self.plan), "seed": self.seed, "stage": path.name}
        return RunDirectory(path, settings, resume=True, quiet=self.run.quiet)
