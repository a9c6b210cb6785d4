"""The verb from photos without labels to a hasher: fit."""

from __future__ import annotations

import argparse
from typing import Any

from distilhash.cli.flags import Verbs, add_device, add_run_directory, add_settings, run_options, settings
from distilhash.config import PHOTO_STUDENT, FitConfig, StudentConfig, TeacherConfig


def _declare_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", metavar="PHOTOS", help="a folder of photos, with all folders below it")
    add_run_directory(parser, "runs/fit")
    add_device(parser)
    add_settings(parser, FitConfig, "what is made")
    add_settings(parser, TeacherConfig, "teacher", prefix="teacher-")
    add_settings(parser, StudentConfig, "student", prefix="student-", defaults=PHOTO_STUDENT)


def _run_fit(options: argparse.Namespace) -> Any:
    from distilhash.api import fit

    return fit(
        options.photos, options.output, config=settings(options, FitConfig),
        teacher=settings(options, TeacherConfig, prefix="teacher-"),
        student=settings(options, StudentConfig, prefix="student-"), **run_options(options),
    )  # fmt: skip


VERBS: Verbs = {
    "fit": ("PHOTOS", "make a hasher of photos that nobody labelled", _declare_fit, _run_fit),
}
