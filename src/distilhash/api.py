"""One function for each verb: it opens what the verb reads, runs one stage, and names what it wrote.

These are the verbs of the command line as Python calls (``distilhash.distill(...)``); the stages themselves, in
``training``, ``encoding`` and ``evaluation``, take objects instead of paths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.checkpoint import load_hasher, load_model, load_student
from distilhash.config import DistillConfig, HashConfig, InputConfig, StudentConfig, TeacherConfig, as_dict
from distilhash.data.check import inspect_images
from distilhash.data.loading import PARTS, open_readable, part_of, split_of
from distilhash.data.sources import ImageSource
from distilhash.data.splits import CIFAR10_PROTOCOLS, Split
from distilhash.data.transforms import CROP_MODES
from distilhash.deploy.runtime import encode_exported, is_exported
from distilhash.device import DEVICES, PRECISIONS, current, usable_precision
from distilhash.errors import DistilhashError, unknown_name
from distilhash.experiments.presets import TABLES
from distilhash.files import fingerprint_of_indices
from distilhash.inference import encode, head_inputs
from distilhash.losses import CENTRES
from distilhash.models import (
    STEMS,
    STUDENTS,
    TEACHERS,
    Backbone,
    Hasher,
    create_hasher,
    create_student,
    create_teacher,
)
from distilhash.models.backbone import fingerprint_of
from distilhash.training import distill as distillation
from distilhash.training import hash as hashing
from distilhash.training.networks import is_teacher, new_hasher, new_student, open_backbone, open_teacher
from distilhash.training.optim import OPTIMIZERS
from distilhash.training.run import RunDirectory
from distilhash.training.targets import TARGETS
from distilhash.training.unlabelled import METHODS


def distill(
    images: str | Path,
    output: str | Path,
    *,
    teacher: TeacherConfig | None = None,
    student: StudentConfig | None = None,
    config: DistillConfig | None = None,
    protocol: str = "cifar10",
    split_seed: int = 0,
    split: Path | None = None,
    features: Path | None = None,
    rebuild_features: bool = False,
    all_images: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Distil a teacher into a student on images without using a label; return the model directory.

    ``images`` is "cifar10" or a folder. Where the images are labelled, the queries of the split that hashing will draw
    with the same ``split_seed`` are left out, unless ``all_images`` is set. Errors: DistilhashError.
    """
    teacher, student, config = teacher or TeacherConfig(), student or StudentConfig(), config or DistillConfig()
    source = open_readable(images, labelled=None)
    chosen = None if all_images else split_of(source, images, protocol, split_seed, split, needed=False)
    indices = np.arange(len(source)) if chosen is None else chosen.unlabelled
    # What can be refused is refused here, before a directory is made, or deleted for --overwrite.
    distillation.check(config, len(indices))
    teacher_network, network = open_teacher(teacher), new_student(student, config.seed)
    run = RunDirectory(
        output,
        {"stage": "distill", "images": source.fingerprint, "teacher": as_dict(teacher), "student": as_dict(student),
         "distill": as_dict(config), "split": None if chosen is None else fingerprint_of_indices(chosen.query)},
        resume=resume, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip
    if run.finished:
        return run.path / "model"
    with run:
        if chosen is not None:
            chosen.save(run.path / "split.json")
            run.say(f"{len(chosen.query):,} images are left out: the queries of the split (--all-images takes them)")
        distillation.distill(
            source, indices, teacher_network, network, config, run,
            features=features, rebuild_features=rebuild_features,
            queries=None if chosen is None else fingerprint_of_indices(chosen.query),
        )  # fmt: skip
    return run.path / "model"


def hash_images(
    images: str | Path,
    output: str | Path,
    backbone: str | Path = "v1",
    *,
    config: HashConfig | None = None,
    student: StudentConfig | None = None,
    teacher: TeacherConfig | None = None,
    protocol: str = "cifar10",
    split_seed: int = 0,
    split: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Train a hasher on the training part of labelled images; return the model directory.

    ``backbone`` is the run directory of a distilled student, the name of a student (from scratch) or a teacher's name
    (fine-tuned, or only a head on it with ``config.freeze_backbone``). Errors: DistilhashError.
    """
    config, student, teacher = config or HashConfig(), student or StudentConfig(), teacher or TeacherConfig()
    source = open_readable(images, labelled=True)
    chosen = split_of(source, images, protocol, split_seed, split, needed=True)
    assert chosen is not None
    hashing.check(source, len(chosen.train), config)
    network = open_backbone(str(backbone), student, teacher, config)
    run = RunDirectory(
        output,
        {"stage": "hash", "images": source.fingerprint, "backbone": network.architecture,
         "backbone_weights": fingerprint_of(network), "hash": as_dict(config),
         "split": fingerprint_of_indices(chosen.query)},
        resume=resume, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip
    if run.finished:
        return run.path / "model"
    with run:
        chosen.save(run.path / "split.json")
        _warn_of_seen_queries(str(backbone), source, chosen, run)
        hasher = new_hasher(network, config)
        features_ND = head_inputs(source, chosen.train, hasher.backbone) if hasher.freeze_backbone else None
        hashing.train_hasher(source, chosen.train, hasher, config, run, features_ND=features_ND)
    return run.path / "model"


def encode_images(
    hasher: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    part: str = "all",
    protocol: str = "cifar10",
    split_seed: int = 0,
    split: Path | None = None,
    precision: str | None = None,
    int8: bool = False,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write the code table of images, or of one part of their split; return what was written. Errors: DistilhashError.

    ``hasher`` is a run directory, a model directory, or one that ``export`` wrote, for which ``int8`` and ``threads``
    are as in ExportedHasher.open. ``precision`` ("float32" or "bfloat16"; left out: as the hasher was trained, where
    the processor has it) is for the others, and is written into the table.
    """
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    if precision not in (None, *PRECISIONS[1:]):
        raise unknown_name("precision", precision, PRECISIONS[1:])
    if is_exported(hasher):
        if precision is not None:
            raise DistilhashError(
                "an exported hasher runs in the precision it was exported in", precision, "or take --int8"
            )
        return encode_exported(
            hasher, images, output, int8=int8, threads=threads, part=part, protocol=protocol, split_seed=split_seed,
            split=split,
        )  # fmt: skip
    if int8 or threads is not None:
        raise DistilhashError("int8 and threads are for an exported hasher", hasher, "export it: distilhash export")
    where = current()
    network, _ = load_hasher(hasher)
    source = open_readable(images, labelled=part != "all")
    indices = part_of(source, images, part, protocol, split_seed, split, beside=Path(hasher))
    precision = precision or usable_precision(network.precision)
    made = {"hasher": fingerprint_of(network), "precision": precision, "device": where.type}
    table = encode(source, indices, network, precision=precision, provenance=made, say=say)
    table.save(Path(output))
    return {"codes": str(output), "images": len(indices), "bits": table.num_bits}


def check_images(images: str | Path) -> dict[str, Any]:
    """What images hold and lack before training; ``data.check`` says what is in the result. Errors: DistilhashError."""
    return inspect_images(images)


def profile_networks(
    networks: Sequence[str], *, bits: int = 64, size: int | None = None, seconds: float = 1.0
) -> list[dict[str, Any]]:
    """Parameters, multiply-adds, latency and throughput of students, teachers or checkpoints. Errors: DistilhashError."""
    from distilhash.evaluation.profile import profile

    opened = [(name, _network(name, bits, size)) for name in networks]  # all, before the first is timed
    return [
        {"network": name, **dataclasses.asdict(profile(network, size or network.input.size, seconds=seconds))}
        for name, network in opened
    ]


def _network(name: str, bits: int, size: int | None) -> Backbone | Hasher:
    """What a name to be profiled stands for; a bare student or teacher gets a hash head."""
    if size is not None and size < 1:
        raise DistilhashError("the input size must be at least 1 pixel", size)
    if name in STUDENTS:
        return create_hasher(create_student(name, size or InputConfig().size), num_bits=bits)
    if is_teacher(name):
        return create_hasher(create_teacher(name, size=size), num_bits=bits)
    if Path(name).exists():
        return load_model(name)[0]
    raise unknown_name("network", name, [*STUDENTS, *TEACHERS, "timm/NAME", "a run directory"])


def known_names() -> dict[str, list[str]]:
    """Every name that can be chosen, by kind."""
    return {
        "teachers": [*TEACHERS, "timm/NAME"],
        "students": list(STUDENTS),
        "stems": list(STEMS),
        "crop modes": list(CROP_MODES),
        "distillation losses": list(TARGETS),
        "distillation modes": list(distillation.MODES),
        "optimizers": list(OPTIMIZERS),
        "precisions": list(PRECISIONS),
        "devices": list(DEVICES),
        "hashing frameworks": list(hashing.QUANTIZATION_WEIGHTS),
        "centres": list(CENTRES),
        "label-free methods": list(METHODS),
        "data sets": ["cifar10", "a folder of images", "a folder with train.txt, database.txt and test.txt"],
        "protocols": list(CIFAR10_PROTOCOLS),
        "parts": list(PARTS),
        "tables": list(TABLES),
        "budgets": list(TABLES["cifar10"]),
    }


def _warn_of_seen_queries(backbone: str, source: ImageSource, split: Split, run: RunDirectory) -> None:
    if backbone in STUDENTS or is_teacher(backbone):
        return
    seen = load_student(backbone)[1]
    if seen.get("images") == source.fingerprint and seen.get("queries") != fingerprint_of_indices(split.query):
        run.say("the student was distilled on this split's queries, too: numbers measured on them will be optimistic")
