"""The networks that training begins with, made from their configs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from distilhash.checkpoint import load_student
from distilhash.config import HashConfig, InputConfig, StudentConfig, TeacherConfig
from distilhash.data.transforms import CROP_MODES
from distilhash.errors import unknown_name
from distilhash.models import (
    STUDENTS,
    TEACHERS,
    Backbone,
    Hasher,
    Student,
    Teacher,
    create_hasher,
    create_student,
    create_teacher,
)


def open_teacher(config: TeacherConfig, *, trainable: bool = False) -> Teacher:
    """A pretrained teacher, frozen unless it is to be fine-tuned."""
    return create_teacher(config.name, weights=config.weights, size=config.size, trainable=trainable)


def new_student(config: StudentConfig, seed: int) -> Student:
    """A student with the random initial weights of a seed."""
    if config.crop_mode not in CROP_MODES:
        raise unknown_name("crop_mode", config.crop_mode, CROP_MODES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student_input = InputConfig(size=config.size, crop_mode=config.crop_mode, margin=config.margin)
        return create_student(config.name, size=config.size, stem=config.stem, input=student_input)


def new_hasher(backbone: Backbone, config: HashConfig) -> Hasher:
    """A hasher on a backbone, its head initialised by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 2)
        return create_hasher(backbone, num_bits=config.bits, freeze_backbone=config.freeze_backbone)


def open_backbone(name: str, student: StudentConfig, teacher: TeacherConfig, config: HashConfig) -> Backbone:
    """The backbone that a hasher is trained on.

    Args:
        name: a student ("v1": from scratch), a teacher ("timm/NAME": trainable unless ``config.freeze_backbone``), or
            the run directory of a distilled student.
        student: size and stem of a student from scratch.
        teacher: weights and size of a teacher.
        config: of the hasher.

    Raises:
        DistilhashError: the name is none of these.
    """
    if name in STUDENTS:
        return new_student(dataclasses.replace(student, name=name), config.seed)
    if is_teacher(name):
        return create_teacher(name, weights=teacher.weights, size=teacher.size, trainable=not config.freeze_backbone)
    if Path(name).exists():
        return load_student(name)[0]
    raise unknown_name("backbone", name, [*STUDENTS, *TEACHERS, "timm/NAME", "a distilled student's run directory"])


def is_teacher(name: str) -> bool:
    """Whether a name is a teacher's and no path: names go first, so ./v1 or ./timm is how a folder is meant."""
    return name.startswith(("torchvision/", "timm/", "pip/"))
