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
from distilhash.config import (
    PHOTO_STUDENT,
    DistillConfig,
    FitConfig,
    HashConfig,
    InputConfig,
    ScanConfig,
    StudentConfig,
    TeacherConfig,
    as_dict,
)  # fmt: skip
from distilhash.data.loading import open_readable
from distilhash.data.sources import ImageSource
from distilhash.device import current
from distilhash.files import read_json
from distilhash.inference import head_inputs
from distilhash.losses import hash_centres
from distilhash.models import Backbone, Hasher, Teacher, new_hasher, new_student, open_teacher
from distilhash.models.backbone import fingerprint_of
from distilhash.training import distill as distillation
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory
from distilhash.training.teacher_features import compute_teacher_features
from distilhash.training.unlabelled import AUTO, SAMPLE, PseudoLabelled, itq_hasher, pseudo_classes

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
    photos: str | Path, output: str | Path, *, config: FitConfig | None = None, teacher: TeacherConfig | None = None,
    student: StudentConfig | None = None, scan: ScanConfig | None = None, resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make a hasher of a folder of photos; no label is read. Arguments and result are those of ``api.fit``.

    Raises:
        DistilhashError: an unknown teacher or student, no readable photos, or a run that is there.
    """
    config, teacher, student = config or FitConfig(), teacher or TeacherConfig(), student or PHOTO_STUDENT
    images = open_readable(photos, labelled=False, scan=scan)
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
    run = RunDirectory(output, settings, images=images, resume=resume, overwrite=overwrite)
    with run:
        fit_images(images, teacher_network, plan, config, run)
    return _summary(run.path)


def fit_images(
    images: ImageSource, teacher: Teacher, plan: FitPlan, config: FitConfig, run: RunDirectory
) -> tuple[Hasher, dict[str, Any]]:
    """The hasher of these images and its description; what is in the run directory already is not done again."""
    if run.finished:
        return load_hasher(run.path)
    indices, method = np.arange(len(images)), _method(config)

    def stage_of(name: str) -> RunDirectory:
        settings = {"fit": as_dict(config), "student": as_dict(plan.student), "stage": name}
        return RunDirectory(run.path / name, settings, resume=True)

    def teacher_features(crop_mode: InputConfig | None, views: int) -> np.ndarray:
        return compute_teacher_features(
            images, indices, teacher, run.path / "teacher_features", crop_mode=crop_mode, views=views,
            seed=plan.distill.seed, precision=plan.distill.precision,
        )  # fmt: skip

    backbone: Backbone = teacher
    if len(images) < FEW:
        method = "itq"
        run.log(
            f"{len(images):,} photos are too few to distil a student on (fewer than {FEW}): "
            f"the frozen teacher {teacher.name} is hashed by ITQ"
        )
    else:
        stage = stage_of("distill")
        if not stage.finished:
            student, features = new_student(plan.student, config.seed), run.path / "teacher_features"
            distillation.distill(images, indices, teacher, student, plan.distill, stage, features=features)
        backbone = load_student(stage.path)[0]

    stage = stage_of(f"hash-{method}")
    if not stage.finished:
        about: dict[str, Any] = {
            "label_free": method, "labelled_images": 0, "unlabelled_images": len(images),
            "backbone": f"{'the frozen' if backbone is teacher else 'a distilled'} {backbone.name}",
            "backbone_fingerprint": fingerprint_of(backbone), "teacher": teacher.name,
        }  # fmt: skip
        if method == "pseudo":
            features_ND = teacher_features(backbone.input, plan.distill.views)[0]
            classes_N = pseudo_classes(features_ND, config.clusters, config.seed)
            labelled = PseudoLabelled(images, indices, classes_N)
            about["clusters"] = len(labelled.class_names)
            hashing.train_hasher(labelled, indices, new_hasher(backbone, plan.hash), plan.hash, stage, about=about)
        else:
            if backbone is teacher:
                features_ND = teacher_features(None, 1)[0]
            else:
                sample = np.sort(np.random.default_rng((config.seed, 14)).permutation(indices)[:SAMPLE])
                features_ND = head_inputs(images, sample, backbone)
            hasher = itq_hasher(backbone, features_ND, config.bits, config.seed)
            hasher.seen = images.digests
            stage.log(f"hash itq {config.bits} bits: fitted to {min(len(features_ND), SAMPLE):,} photos")
            description = {
                "kind": "hasher", "architecture": backbone.architecture, "bits": config.bits,
                "images": images.fingerprint, "settings": as_dict(config),
            }  # fmt: skip
            save_model(stage.path / "model", hasher, description | about)
    save_model(run.path / "model", *load_hasher(stage.path))
    return load_hasher(run.path)


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
