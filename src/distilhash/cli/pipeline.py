"""The verbs from images to numbers: demo, distill, hash, encode, evaluate, profile, list."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distilhash.cli.flags import (
    Verbs,
    add_device,
    add_images,
    add_run_directory,
    add_settings,
    image_options,
    run_options,
    settings,
)
from distilhash.config import DemoConfig, DistillConfig, HashConfig, ReproduceConfig, StudentConfig, TeacherConfig
from distilhash.errors import DistilhashError


def _declare_demo(parser: argparse.ArgumentParser) -> None:
    add_run_directory(parser, "runs/demo")
    add_device(parser)
    add_settings(parser, DemoConfig, "what is run")


def _run_demo(options: argparse.Namespace) -> Any:
    from distilhash.api import demo

    return _results(demo(options.output, config=settings(options, DemoConfig), **run_options(options)), options)


def _declare_reproduce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", metavar="TABLE", help="cifar10 or nuswide")
    add_run_directory(parser, "runs/reproduce")
    add_device(parser)
    add_settings(parser, ReproduceConfig, "what is computed")


def _run_reproduce(options: argparse.Namespace) -> Any:
    from distilhash.api import reproduce

    config = settings(options, ReproduceConfig)
    return _results(reproduce(options.table, options.output, config=config, **run_options(options)), options)


def _results(rows: list[dict[str, Any]], options: argparse.Namespace) -> Any:
    """The rows of results.json, or for a person the table of them."""
    if options.json:
        return rows
    from rich.console import Console

    from distilhash.experiments.tables import terminal_table
    from distilhash.experiments.trials import read_trials

    console = Console()
    with console.capture() as captured:
        console.print(terminal_table(read_trials(rows)))
    return f"{captured.get()}\nThe report: {options.output / 'report.html'}"


def _declare_distill(parser: argparse.ArgumentParser) -> None:
    add_images(parser)
    add_run_directory(parser, "runs/distill")
    add_device(parser)
    parser.add_argument("--features", type=Path, metavar="DIR", help="teacher feature cache; left out: in the run")
    parser.add_argument("--rebuild-features", action="store_true", help="compute the feature cache anew")
    parser.add_argument("--all-images", action="store_true", help="distil on the queries of a labelled split, too")
    add_settings(parser, TeacherConfig, "teacher", prefix="teacher-")
    add_settings(parser, StudentConfig, "student", prefix="student-")
    add_settings(parser, DistillConfig, "distillation")


def _run_distill(options: argparse.Namespace) -> Any:
    from distilhash.api import distill

    model = distill(
        options.images,
        options.output,
        teacher=settings(options, TeacherConfig, prefix="teacher-"),
        student=settings(options, StudentConfig, prefix="student-"),
        config=settings(options, DistillConfig),
        **image_options(options), **run_options(options), features=options.features,
        rebuild_features=options.rebuild_features, all_images=options.all_images,
    )  # fmt: skip
    return {"student": str(model)}


def _declare_hash(parser: argparse.ArgumentParser) -> None:
    add_images(parser)
    add_run_directory(parser, "runs/hash")
    add_device(parser)
    parser.add_argument(
        "--backbone", default="v1", metavar="NAME|DIR",
        help="a distilled student (run directory), v1 or v2 from scratch, or a teacher's name (default: %(default)s)",
    )  # fmt: skip
    add_settings(parser, StudentConfig, "student from scratch", prefix="student-", skip="name")
    add_settings(parser, TeacherConfig, "teacher as backbone", prefix="teacher-", skip="name")
    add_settings(parser, HashConfig, "hashing")


def _run_hash(options: argparse.Namespace) -> Any:
    from distilhash import api

    model = api.hash(
        options.images, options.output, options.backbone, config=settings(options, HashConfig),
        student=settings(options, StudentConfig, prefix="student-"),
        teacher=settings(options, TeacherConfig, prefix="teacher-"),
        **image_options(options), **run_options(options),
    )  # fmt: skip
    return {"hasher": str(model)}


def _declare_encode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "hasher", metavar="HASHER", type=Path, help="run directory or model of a hasher, or one that was exported"
    )
    add_images(parser)
    parts = "which images of the split: all, query, database, train or validation (default: %(default)s)"
    parser.add_argument("--part", default="all", metavar="NAME", help=parts)
    parser.add_argument(
        "--output", type=Path, default=Path("codes.safetensors"), metavar="FILE",
        help="code table (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", metavar="NAME",
        help="float32 or bfloat16 (default: what the hasher was trained in, where the processor has it)",
    )  # fmt: skip
    add_device(parser)
    parser.add_argument("--int8", action="store_true", help="the int8 model of an exported hasher")
    parser.add_argument(
        "--threads", type=int, metavar="INT", help="of an exported hasher, count; left out: one for each core"
    )


def _run_encode(options: argparse.Namespace) -> Any:
    from distilhash.api import encode
    from distilhash.deploy.runtime import is_exported

    if options.device and is_exported(options.hasher):
        raise DistilhashError("an exported hasher runs on the processor", f"--device {options.device}", "leave it out")
    return encode(
        options.hasher, options.images, options.output, part=options.part, int8=options.int8, threads=options.threads,
        precision=options.precision, **image_options(options),
    )  # fmt: skip


def _declare_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", metavar="QUERY", type=Path, help="code table of the queries")
    parser.add_argument("database", metavar="DATABASE", type=Path, help="code table of the database")
    parser.add_argument("--at", type=int, metavar="K", help="also mAP@K, over the K nearest images, count")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the metrics and curves as JSON")


def _run_evaluate(options: argparse.Namespace) -> Any:
    from distilhash.api import evaluate

    return evaluate(options.query, options.database, at=options.at, output=options.output)


def _declare_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("networks", nargs="+", metavar="NETWORK", help="student or teacher name, or run directory")
    parser.add_argument(
        "--bits", type=int, default=64, metavar="INT",
        help="length of the code of a bare name's head, bits (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--size", type=int, metavar="INT", help="input side, pixels; left out: the network's own")
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="FLOAT",
        help="time spent on each timing, seconds (default: %(default)s)",
    )  # fmt: skip


def _run_profile(options: argparse.Namespace) -> Any:
    from distilhash.api import profile

    return profile(options.networks, bits=options.bits, size=options.size, seconds=options.seconds)


def _run_list(options: argparse.Namespace) -> Any:
    from distilhash.api import known_names

    return known_names()


VERBS: Verbs = {
    "demo": ("", "show the whole argument on CIFAR-10: distil, hash, compare, report", _declare_demo, _run_demo),
    "reproduce": ("TABLE", "compute the paper's comparison, cell by cell", _declare_reproduce, _run_reproduce),
    "distill": ("IMAGES", "distil a frozen teacher into a student, without labels", _declare_distill, _run_distill),
    "hash": ("IMAGES", "train a hasher on labelled images", _declare_hash, _run_hash),
    "encode": ("HASHER IMAGES", "turn images into a code table", _declare_encode, _run_encode),
    "evaluate": ("QUERY DATABASE", "measure retrieval with two code tables", _declare_evaluate, _run_evaluate),
    "profile": (
        "NETWORK...", "count parameters and multiply-adds, and time networks", _declare_profile, _run_profile
    ),
    "list": ("", "show every name that can be chosen", lambda parser: None, _run_list),
}  # fmt: skip
