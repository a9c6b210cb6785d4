"""From a folder of photos without labels to a hasher: a student distilled on them, or the frozen teacher itself.

    teacher_features/        of every photo and view
    distill/                 the student
    hash-itq/ hash-pseudo/   the student, hashed without labels
    hash-teacher/            the frozen teacher, hashed by ITQ
    comparison.json          what both were measured to do, and the verdict
    model/                   the better one

A stage that is whole is not done again, so a run that was stopped goes on. Both hashers are fitted to the same photos
and measured on the others. Fewer than FEW photos are no training set for a student: the teacher alone is hashed. One
file, as the stages, what is measured and the verdict are read together.

Shapes: N photos, D features, K bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from distilhash.checkpoint import load_hasher, load_student, save_model
from distilhash.codes import hamming, pack
from distilhash.config import (
    PHOTO_STUDENT,
    DistillConfig,
    FitConfig,
    HashConfig,
    ScanConfig,
    StudentConfig,
    TeacherConfig,
    as_dict,
)  # fmt: skip
from distilhash.data.loading import open_readable
from distilhash.data.sources import ImageSource
from distilhash.device import current
from distilhash.errors import DistilhashError
from distilhash.evaluation.profile import count_macs, count_parameters
from distilhash.files import read_json, write_json
from distilhash.inference import head_inputs, outputs
from distilhash.losses import hash_centres
from distilhash.models import Backbone, HasherNetwork, Teacher, new_hasher, new_student, open_teacher
from distilhash.models.backbone import fingerprint_of
from distilhash.training import distill as distillation
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory
from distilhash.training.teacher_features import compute_teacher_features
from distilhash.training.unlabelled import AUTO, SAMPLE, PseudoLabelled, itq_hasher, pseudo_classes

FEW = 500  # different photos: fewer are no training set for a network from scratch
PHOTOS_SHOWN, EPOCHS = 40_000, (8, 40)  # photos shown to a student over all epochs, and the bounds of the epochs
EDITED = 100  # photos whose edited copies are encoded: the teacher takes its time
KEPT = 0.9  # of the teacher's overlap: a student that has less is the worse hasher
HALFWAY = 0.5  # to the nearest other photo: copies that move less far are not taken for other photos
EDITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "brighter": lambda image: np.minimum(image * 1.2, 255).astype(np.uint8),
    "mirrored": lambda image: image[:, ::-1],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitPlan:
    """The student of a fit and the settings of its two stages."""

    student: StudentConfig
    distill: DistillConfig
    hash: HashConfig  # of the pseudo-classes
    reason: str  # why there is no student; empty where there is one


def fit_plan(config: FitConfig, count: int, student: StudentConfig) -> FitPlan:
    """The stages for ``count`` different photos: the fewer there are, the more often each is shown."""
    epochs = config.epochs or min(max(round(PHOTOS_SHOWN / count), EPOCHS[0]), EPOCHS[1])
    shared: dict[str, Any] = {
        "batch_size": config.batch_size, "precision": config.precision, "seed": config.seed,
        "checkpoint_seconds": config.checkpoint_seconds,
    }  # fmt: skip
    reason = "as asked" if config.backbone == "teacher" else ""
    if config.backbone == "auto" and count < FEW:
        reason = f"as {count:,} different photos are too few to distil a student on (fewer than {FEW})"
    return FitPlan(
        student=student,
        distill=DistillConfig(epochs=epochs, views=config.views, augment=True, **shared),
        hash=HashConfig(framework="csq", bits=config.bits, epochs=config.hash_epochs, **shared),
        reason=reason,
    )


def fit(
    photos: str | Path | Any, output: str | Path, *, config: FitConfig | None = None,
    teacher: TeacherConfig | None = None, student: StudentConfig | None = None, scan: ScanConfig | None = None,
    resume: bool = False, overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make a hasher of a folder of photos; no label is read. Arguments and result are those of ``api.fit``.

    Raises:
        DistilhashError: an unknown teacher or student, no two different photos, or a run that is there.
    """
    config, teacher, student = config or FitConfig(), teacher or TeacherConfig(), student or PHOTO_STUDENT
    images = open_readable(photos, labelled=False, scan=scan)
    different = len(np.unique(images.digests, axis=0))
    if different < 2:  # what can be refused is refused here, before a directory is made, or deleted
        raise DistilhashError("a hasher is fitted to photos that differ", f"{len(images):,} of one photo", "give more")
    plan = fit_plan(config, different, student)
    current()
    network = new_student(student, config.seed)
    if not plan.reason:
        distillation.check(plan.distill, images, np.arange(len(images)))
        if _method(config) == "pseudo":
            hash_centres(config.clusters, config.bits, config.seed, kind=plan.hash.centres)
    teacher_network = open_teacher(teacher, crop_mode=network.input)
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
) -> tuple[HasherNetwork, dict[str, Any]]:
    """The hasher of these images and its description; what is in the run directory already is not done again.

    ``teacher`` sees the part of an image that the student sees.
    """
    if run.finished:
        return load_hasher(run.path)
    indices, method = np.arange(len(images)), _method(config)
    fitted, validation = indices, indices[:0]
    if not plan.reason:
        fitted, validation = distillation.split_validation(indices, plan.distill.validation_size, config.seed)
    alone = f"The frozen {teacher.name} is hashed, {plan.reason}."
    if plan.reason:
        run.log(alone)
    sample = np.sort(np.random.default_rng((config.seed, 14)).permutation(fitted)[:SAMPLE])
    features_ND = compute_teacher_features(
        images, indices, teacher, run.path / "teacher_features", views=1 if plan.reason else plan.distill.cached_views,
        seed=config.seed, precision=config.precision,
    )[0]  # fmt: skip
    if not np.ptp(features_ND[sample], axis=0).any():
        raise DistilhashError(
            "the teacher sees no difference between the photos", f"{len(images):,} of them", "give others"
        )

    def stage_of(name: str) -> RunDirectory:
        settings = {"fit": as_dict(config), "student": as_dict(plan.student), "stage": name}
        return RunDirectory(run.path / name, settings, resume=True)

    def about(backbone: Backbone, method: str) -> dict[str, Any]:
        return {
            "label_free": method, "labelled_images": 0, "unlabelled_images": len(images),
            "backbone": f"{'the frozen' if backbone is teacher else 'a distilled'} {backbone.name}",
            "backbone_fingerprint": fingerprint_of(backbone), "teacher": teacher.name,
        }  # fmt: skip

    def hash_by_itq(backbone: Backbone, sample_ND: np.ndarray, stage: RunDirectory) -> None:
        hasher = itq_hasher(backbone, sample_ND, config.bits, config.seed)
        hasher.seen = images.digests
        stage.log(f"hash itq {config.bits} bits: {backbone.name}, fitted to {len(sample_ND):,} photos")
        description = {
            "kind": "hasher", "architecture": backbone.architecture, "bits": config.bits,
            "images": images.fingerprint, "settings": as_dict(config),
        }  # fmt: skip
        save_model(stage.path / "model", hasher, description | about(backbone, "itq"))

    stages = {"teacher": stage_of("hash-teacher")}
    if not stages["teacher"].finished:
        hash_by_itq(teacher, features_ND[sample], stages["teacher"])
    if not plan.reason:
        distill, stages["student"] = stage_of("distill"), stage_of(f"hash-{method}")
        if not distill.finished:
            student = new_student(plan.student, config.seed)
            features = run.path / "teacher_features"
            distillation.distill(images, indices, teacher, student, plan.distill, distill, features=features)
        backbone = load_student(distill.path)[0]
        if not stages["student"].finished and method == "itq":
            hash_by_itq(backbone, head_inputs(images, sample, backbone), stages["student"])
        elif not stages["student"].finished:
            labelled = PseudoLabelled(images, fitted, pseudo_classes(features_ND, fitted, config.clusters, config.seed))
            hashing.train_hasher(
                labelled, fitted, new_hasher(backbone, plan.hash), plan.hash, stages["student"],
                about=about(backbone, method) | {"clusters": len(labelled.class_names)},
            )  # fmt: skip

    better = "teacher"
    comparison: dict[str, Any] = {"verdict": alone}
    if not plan.reason:
        near = distillation.nearest(torch.from_numpy(features_ND[validation])).numpy()
        measured = {
            name: measure(load_hasher(stage.path)[0], images, validation, near) for name, stage in stages.items()
        }
        better, sentence = verdict(measured["student"], measured["teacher"], config.backbone)
        comparison |= {"validation_photos": len(validation), **measured, "verdict": sentence}
    write_json(run.path / "comparison.json", comparison)
    save_model(run.path / "model", *load_hasher(stages[better].path))
    return load_hasher(run.path)


class _Edited(ImageSource):
    """A source whose images are edited; it has no labels."""

    def __init__(self, source: ImageSource, edit: Callable[[np.ndarray], np.ndarray]) -> None:
        self.source, self.edit = source, edit
        self.names, self.digests, self.fingerprint = source.names, source.digests, source.fingerprint
        self.decodes = source.decodes

    def read(self, indices: ArrayLike) -> Any:
        """The edited images of these indices, as arrays (H, W, 3)."""
        return [self.edit(np.asarray(image)) for image in self.source.read(indices)]


def measure(hasher: HasherNetwork, images: ImageSource, validation: np.ndarray, near_N10: np.ndarray) -> dict[str, Any]:
    """What a hasher does with photos that it was not fitted to.

    Args:
        hasher: in eval mode.
        images, validation: the source, and the photos.
        near_N10: of each of them the ten others that are nearest by the teacher's features.

    Returns:
        ``overlap_at_10``: the share of those among the ten nearest by code, ties in random order. ``brighter_bits``,
        ``mirrored_bits``, ``nearest_bits``: mean distance of a code to that of a copy 1.2 times as bright, of the
        mirror image, and of the nearest other photo. ``moved``: the mean of the first two as a share of the last.
        ``distinct_codes``, ``parameters`` and ``macs``.
    """

    def codes(source: ImageSource, indices: np.ndarray) -> np.ndarray:
        return np.concatenate([pack(outputs_nK) for outputs_nK in outputs(source, indices, hasher)])

    plain_NP = codes(images, validation)
    distances_NN = hamming(plain_NP, plain_NP, hasher.num_bits).astype(np.int64)
    np.fill_diagonal(distances_NN, hasher.num_bits + 1)  # a photo is not its own neighbour
    tenth_N1 = np.sort(distances_NN, axis=1)[:, near_N10.shape[1] - 1 :][:, :1]
    within_NN, tied_NN = distances_NN < tenth_N1, distances_NN == tenth_N1
    free_N1 = near_N10.shape[1] - within_NN.sum(axis=1, keepdims=True)  # places that the tied ones share
    share_NN = within_NN + tied_NN * free_N1 / tied_NN.sum(axis=1, keepdims=True)
    edited = validation[:EDITED]
    moved = {}
    for name, edit in EDITS.items():
        changed_NP = codes(_Edited(images, edit), edited) ^ plain_NP[: len(edited)]
        moved[name] = float(np.bitwise_count(changed_NP).sum(axis=1).mean())
    nearest = float(distances_NN.min(axis=1).mean())
    return {
        "overlap_at_10": float(np.take_along_axis(share_NN, near_N10, axis=1).mean()),
        **{f"{name}_bits": bits for name, bits in moved.items()},
        "nearest_bits": nearest,
        "moved": sum(moved.values()) / len(moved) / nearest if nearest else None,
        "distinct_codes": len(np.unique(plain_NP, axis=0)),
        "parameters": count_parameters(hasher),
        "macs": count_macs(hasher, hasher.input.size),
    }


def verdict(student: dict[str, Any], teacher: dict[str, Any], wanted: str = "auto") -> tuple[str, str]:
    """Which of two hashers that measure() knows is used, and a sentence that says why.

    The smaller student is the better one where it keeps most of the teacher's overlap and bears edits as well as the
    teacher, or well enough.
    """
    moved = [np.inf if row["moved"] is None else row["moved"] for row in (student, teacher)]
    enough = student["overlap_at_10"] >= KEPT * teacher["overlap_at_10"] and moved[0] <= max(moved[1], HALFWAY)
    first, second = ("student", "teacher") if enough else ("teacher", "student")
    a, b = (student, teacher) if enough else (teacher, student)
    sentence = (
        f"The {first} is the better hasher of these photos: of a photo's ten nearest by the teacher's features its "
        f"codes find {a['overlap_at_10']:.0%} (the {second}'s {b['overlap_at_10']:.0%}), and a brighter or mirrored "
        f"copy moves {_share(a)} of the way to the nearest other photo (the {second}'s {_share(b)}); "
        f"the student has {_size(student)}, the frozen teacher {_size(teacher)}."
    )
    if wanted not in ("auto", first):
        return wanted, f"{sentence} The {wanted} is used, as asked."
    return first, sentence


def _share(row: dict[str, Any]) -> str:
    return "all" if row["moved"] is None else f"{row['moved']:.0%}"


def _size(row: dict[str, Any]) -> str:
    return f"{row['parameters'] / 1e6:.1f} M parameters and {row['macs'] / 1e6:.0f} M multiply-adds"


def _method(config: FitConfig) -> str:
    return AUTO if config.method == "auto" else config.method


def _summary(path: Path) -> dict[str, Any]:
    about = read_json(path / "model" / "config.json", "hasher")
    found = {
        "hasher": str(path / "model"), "backbone": about["backbone"], "method": about["label_free"],
        "photos": about["unlabelled_images"], "bits": about["bits"],
    }  # fmt: skip
    comparison: dict[str, Any] = read_json(path / "comparison.json", "comparison")
    return found | comparison
