"""From a folder of photos without labels to a hasher: distil a student on them, then hash it without labels.

    teacher_features/    of every photo and view
    distill/             the student
    hash-itq/ or hash-pseudo/
    model/               the hasher of the last of these

A stage that is whole is not done again, so a run that was stopped goes on. Fewer than FEW photos are no
training set for a student: they are hashed with the frozen teacher itself.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.checkpoint import load_hasher, load_student, save_model
from distilhash.config import PHOTO_STUDENT, DistillConfig, FitConfig, HashConfig, StudentConfig, TeacherConfig, as_dict
from distilhash.data.loading import open_readable
from distilhash.data.sources import ImageSource
from distilhash.device import current
from distilhash.files import read_json
from distilhash.inference import head_inputs
from distilhash.losses import hash_centres
from distilhash.models import Backbone, Hasher, Teacher
from distilhash.models.backbone import fingerprint_of
from distilhash.training import distill as distillation
from distilhash.training import hash as hashing
from distilhash.training.networks import new_hasher, new_student, open_teacher
from distilhash.training.run import RunDirectory
from distilhash.training.teacher_features import compute_teacher_features
from distilhash.training.unlabelled import (
    AUTO,
    SAMPLE,
    PseudoLabelled,
    itq_hasher,
    pseudo_classes,
)

FEW = 500  # photos: fewer are no training set for a network from scratch
PHOTOS_SHOWN, EPOCHS = 40_000, (8, 40)  # photos shown to a student over all epochs, and the bounds of the epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitPlan:
    """The student of a fit and the settings of its two stages."""

    student: StudentConfig
    distill: DistillConfig
    hash: HashConfig  # of the pseudo-classes


def fit_plan(config: FitConfig, count: int, student: StudentConfig) -> FitPlan:
    """The stages for ``count`` photos: the fewer there are, the more often each is shown."""
    epochs = config.epochs or min(max(round(PHOTOS_SHOWN / count), EPOCHS[0]), EPOCHS[1])
    shared: dict[str, Any] = {
        "batch_size": config.batch_size, "precision": config.precision, "seed": config.seed,
        "checkpoint_seconds": config.checkpoint_seconds,
    }  # fmt: skip
    return FitPlan(
        student=student,
        distill=DistillConfig(epochs=epochs, views=config.views, **shared),
        hash=HashConfig(framework="csq", bits=config.bits, epochs=config.hash_epochs, **shared),
    )


def fit(
    photos: str | Path,
    output: str | Path,
    *,
    config: FitConfig | None = None,
    teacher: TeacherConfig | None = None,
    student: StudentConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make a hasher of photos; no label is read.

    Args:
        photos: a folder, with all folders below it.
        output: the run directory.
        config: the settings.
        teacher: its settings.
        student: its settings.
        resume: continue the run that is there, if one is.
        overwrite: delete the run that is there, if one is.

    Returns:
        "hasher" (its model directory), "backbone", "method", "photos", "bits", and of a distilled student
        "overlap_at_10": the share of the teacher's ten nearest photos that the student has, too, on the validation set.

    Raises:
        DistilhashError: an unknown teacher or student, no readable photos, or a run that is there.
    """
    config, teacher, student = config or FitConfig(), teacher or TeacherConfig(), student or PHOTO_STUDENT
    images = open_readable(photos, labelled=False)
    plan = fit_plan(config, len(images), student)
    current()
    teacher_network = open_teacher(teacher)
    if len(images) >= FEW:  # what can be refused is refused here, before a directory is made, or deleted
        distillation.check(plan.distill, len(images))
        new_student(student, config.seed)
        if _method(config) == "pseudo":
            hash_centres(config.clusters, config.bits, config.seed, kind=plan.hash.centres)
    settings = {
        "stage": "fit", "images": images.fingerprint, "teacher": as_dict(teacher), "student": as_dict(student),
        "fit": as_dict(config),
    }  # fmt: skip
    run = RunDirectory(output, settings, resume=resume, overwrite=overwrite)
    with run:
        fit_images(images, teacher_network, plan, config, run)
    return _summary(run.path)


def fit_images(
    images: ImageSource, teacher: Teacher, plan: FitPlan, config: FitConfig, run: RunDirectory
) -> tuple[Hasher, dict[str, Any]]:
    """The hasher of these images and its description; what is in the run directory already is not done again."""
    if not run.finished:
        hasher, description = _Fit(images, teacher, plan, config, run).hasher()
        save_model(run.path / "model", hasher, description)
    return load_hasher(run.path)


@dataclasses.dataclass(frozen=True)
class _Fit:
    images: ImageSource
    teacher: Teacher
    plan: FitPlan
    config: FitConfig
    run: RunDirectory

    @property
    def indices(self) -> np.ndarray:
        return np.arange(len(self.images))

    def hasher(self) -> tuple[Hasher, dict[str, Any]]:
        method = _method(self.config)
        if len(self.images) < FEW:
            self.run.log(
                f"{len(self.images):,} photos are too few to distil a student on (fewer than {FEW}): "
                f"the frozen teacher {self.teacher.name} is hashed by ITQ"
            )
            stage = self._stage("hash-itq")
            if not stage.finished:
                self._rotate(stage, self.teacher, self._teacher_features()[0])
        elif method == "itq":
            student = self._student()
            stage = self._stage("hash-itq")
            if not stage.finished:
                chosen = np.random.default_rng((self.config.seed, 14)).permutation(self.indices)[:SAMPLE]
                self._rotate(stage, student, head_inputs(self.images, np.sort(chosen), student))
        else:
            student = self._student()
            stage = self._stage("hash-pseudo")
            if not stage.finished:
                self._cluster(stage, student)
        return load_hasher(stage.path)

    def _student(self) -> Backbone:
        stage = self._stage("distill")
        if not stage.finished:
            student = new_student(self.plan.student, self.config.seed)
            distillation.distill(
                self.images, self.indices, self.teacher, student, self.plan.distill, stage, features=self._features
            )
        return load_student(stage.path)[0]

    def _rotate(self, stage: RunDirectory, backbone: Backbone, features_ND: np.ndarray) -> None:
        hasher = itq_hasher(backbone, features_ND, self.config.bits, self.config.seed)
        stage.log(f"hash itq {self.config.bits} bits: fitted to {min(len(features_ND), SAMPLE):,} photos")
        description = {
            "kind": "hasher", "architecture": backbone.architecture, "bits": self.config.bits,
            "images": self.images.fingerprint, "settings": as_dict(self.config),
        }  # fmt: skip
        save_model(stage.path / "model", hasher, description | self._about("itq", backbone))

    def _cluster(self, stage: RunDirectory, student: Backbone) -> None:
        features_ND = self._teacher_features(student)[0]
        classes_N = pseudo_classes(features_ND, self.config.clusters, self.config.seed)
        images = PseudoLabelled(self.images, self.indices, classes_N)
        hasher = new_hasher(student, self.plan.hash)
        about = self._about("pseudo", student) | {"clusters": len(images.class_names)}
        hashing.train_hasher(images, self.indices, hasher, self.plan.hash, stage, about=about)

    def _about(self, method: str, backbone: Backbone) -> dict[str, Any]:
        """What a checkpoint says of its making."""
        name = f"the frozen {backbone.name}" if isinstance(backbone, Teacher) else f"a distilled {backbone.name}"
        return {
            "label_free": method, "labelled_images": 0, "unlabelled_images": len(self.images), "backbone": name,
            "backbone_fingerprint": fingerprint_of(backbone), "teacher": self.teacher.name,
        }  # fmt: skip

    def _teacher_features(self, student: Backbone | None = None) -> np.ndarray:
        """(V, N, D) as distillation reads them, cropped as the student's input, or by the teacher's own crop mode."""
        distill = self.plan.distill
        return compute_teacher_features(
            self.images, self.indices, self.teacher, self._features, crop_mode=student.input if student else None,
            views=distill.views if student else 1, seed=distill.seed, precision=distill.precision,
        )  # fmt: skip

    @property
    def _features(self) -> Path:
        return self.run.path / "teacher_features"

    def _stage(self, name: str) -> RunDirectory:
        settings = {"fit": as_dict(self.config), "student": as_dict(self.plan.student), "stage": name}
        return RunDirectory(self.run.path / name, settings, resume=True)


def _method(config: FitConfig) -> str:
    return AUTO if config.method == "auto" else config.method


def _summary(path: Path) -> dict[str, Any]:
    about = read_json(path / "model" / "config.json", "hasher")
    found = {
        "hasher": str(path / "model"), "backbone": about["backbone"], "method": about["label_free"],
        "photos": about["unlabelled_images"], "bits": about["bits"],
    }  # fmt: skip
    agreement = [line["overlap_at_10"] for line in RunDirectory.metrics_in(path / "distill") if "overlap_at_10" in line]
    return found | ({"overlap_at_10": agreement[-1]} if agreement else {})
