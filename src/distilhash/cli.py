"""The command line: the only file that parses arguments, prints results and exits.

Results go to stdout (``--json`` for machines), progress and logs to stderr. Exit codes: 0 done, 2 the user's mistake
(one sentence), 1 ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distilhash.config import (
    DemoConfig,
    DistillConfig,
    HashConfig,
    StudentConfig,
    TeacherConfig,
)
from distilhash.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        result = options.run(options)
    except UserError as error:
        print(f"distilhash: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "distilhash: interrupted; the same command with --resume goes on from the last saved state.",
            file=sys.stderr,
        )
        return 130
    if result is not None:
        print(json.dumps(result, indent=2) if options.json else _plain(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distilhash",
        description="Distil an untouched image teacher into a compact student without labels, hash it, and search.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (text, declare, run) in VERBS.items():
        verb = verbs.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )  # fmt: skip
        declare(verb)
        verb.add_argument("--json", action="store_true", help="print the result as JSON")
        verb.set_defaults(run=run)
    return parser


def _add_settings(
    parser: argparse.ArgumentParser, config: type, title: str, *, prefix: str = "", skip: str = ""
) -> None:
    """One flag for each field of a config, with its sentence and default."""
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip.split():
            continue
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        flag = f"--{prefix}{field.name.replace('_', '-')}"
        text = field.metadata["help"].replace("%", "%%")
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            group.add_argument(flag, type=kind, default=field.default, metavar=kind.__name__.upper(), help=text)


def _settings(options: argparse.Namespace, config: type[Any], *, prefix: str = "", **given: Any) -> Any:
    """The config that the flags of :func:`_add_settings` describe."""
    prefix = prefix.replace("-", "_")
    names = [field.name for field in dataclasses.fields(config) if hasattr(options, prefix + field.name)]
    return config(**{name: getattr(options, prefix + name) for name in names} | given)


def _add_run_directory(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--output", type=Path, default=Path(default), metavar="DIR", help="run directory")
    parser.add_argument("--resume", action="store_true", help="go on with the run in this directory")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in this directory")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        help='"cifar10", a folder of images (class subfolders where labels are needed), or a folder with list files',
    )
    parser.add_argument(
        "--protocol", default="cifar10", metavar="NAME", help="CIFAR-10 only: cifar10, cifar10-1 or cifar10-2"
    )
    parser.add_argument("--split-seed", type=int, default=0, metavar="INT", help="seed of the split")
    parser.add_argument(
        "--split", type=Path, metavar="FILE", help="a split.json of an earlier run, instead of a new one"
    )


def _declare_demo(parser: argparse.ArgumentParser) -> None:
    _add_run_directory(parser, "runs/demo")
    _add_settings(parser, DemoConfig, "what is run")


def _run_demo(options: argparse.Namespace) -> Any:
    from distilhash.comparison import run_demo
    from distilhash.evaluation.report import results_json, terminal_table

    arms = run_demo(
        _settings(options, DemoConfig), options.output, resume=options.resume, overwrite=options.overwrite,
        quiet=options.quiet,
    )  # fmt: skip
    if options.json:
        return results_json(arms)
    return f"{terminal_table(arms)}\n\nThe report: {options.output / 'report.html'}"


def _declare_distill(parser: argparse.ArgumentParser) -> None:
    _add_images(parser)
    _add_run_directory(parser, "runs/distill")
    parser.add_argument("--features", type=Path, metavar="DIR", help="teacher feature cache (default: inside the run)")
    parser.add_argument("--rebuild-features", action="store_true", help="compute the feature cache anew")
    parser.add_argument("--all-images", action="store_true", help="distil on the queries of a labelled split, too")
    _add_settings(parser, TeacherConfig, "teacher", prefix="teacher-")
    _add_settings(parser, StudentConfig, "student", prefix="student-")
    _add_settings(parser, DistillConfig, "distillation")


def _run_distill(options: argparse.Namespace) -> Any:
    from distilhash.stages import distill

    model = distill(
        options.images,
        options.output,
        teacher=_settings(options, TeacherConfig, prefix="teacher-"),
        student=_settings(options, StudentConfig, prefix="student-"),
        config=_settings(options, DistillConfig),
        **_image_options(options), **_run_options(options), features=options.features,
        rebuild_features=options.rebuild_features, all_images=options.all_images,
    )  # fmt: skip
    return {"student": str(model)}


def _declare_hash(parser: argparse.ArgumentParser) -> None:
    _add_images(parser)
    _add_run_directory(parser, "runs/hash")
    parser.add_argument(
        "--backbone", default="v1", metavar="NAME|DIR",
        help="a distilled student (run directory), v1 or v2 from scratch, or a teacher's name",
    )  # fmt: skip
    _add_settings(parser, StudentConfig, "student from scratch", prefix="student-", skip="name")
    _add_settings(parser, TeacherConfig, "teacher as backbone", prefix="teacher-", skip="name")
    _add_settings(parser, HashConfig, "hashing")


def _run_hash(options: argparse.Namespace) -> Any:
    from distilhash.stages import hash_images

    model = hash_images(
        options.images, options.output, options.backbone, config=_settings(options, HashConfig),
        student=_settings(options, StudentConfig, prefix="student-"),
        teacher=_settings(options, TeacherConfig, prefix="teacher-"),
        **_image_options(options), **_run_options(options),
    )  # fmt: skip
    return {"hasher": str(model)}


def _declare_encode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hasher", type=Path, help="run directory or model of a hasher")
    _add_images(parser)
    parser.add_argument(
        "--part", default="all", metavar="NAME", help="which images: all, query, database, train or validation"
    )
    parser.add_argument("--output", type=Path, default=Path("codes.safetensors"), metavar="FILE", help="code table")


def _run_encode(options: argparse.Namespace) -> Any:
    from distilhash.stages import encode_images

    return encode_images(
        options.hasher, options.images, options.output, part=options.part, say=_stderr, **_image_options(options)
    )


def _declare_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", type=Path, help="code table of the queries")
    parser.add_argument("database", type=Path, help="code table of the database")
    parser.add_argument("--at", type=int, metavar="K", help="mAP@K; left out: at all")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the metrics and curves as JSON")


def _run_evaluate(options: argparse.Namespace) -> Any:
    from distilhash.evaluation.protocol import evaluate_files

    return evaluate_files(options.query, options.database, at=options.at, output=options.output)


def _declare_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("networks", nargs="+", metavar="NAME|DIR", help="student or teacher names, or run directories")
    parser.add_argument(
        "--bits", type=int, default=64, metavar="INT", help="length of the head put on a bare name, bits"
    )
    parser.add_argument("--size", type=int, metavar="INT", help="input side, pixels; left out: the network's own")
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="FLOAT", help="time spent on each timing, seconds"
    )


def _run_profile(options: argparse.Namespace) -> Any:
    from distilhash.stages import profile_networks

    return profile_networks(options.networks, bits=options.bits, size=options.size, seconds=options.seconds)


def _run_list(options: argparse.Namespace) -> Any:
    from distilhash.stages import known_names

    return known_names()


def _image_options(options: argparse.Namespace) -> dict[str, Any]:
    return {"protocol": options.protocol, "split_seed": options.split_seed, "split": options.split}


def _run_options(options: argparse.Namespace) -> dict[str, Any]:
    return {"resume": options.resume, "overwrite": options.overwrite, "quiet": options.quiet}


def _stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _plain(result: Any) -> str:
    """A result as text: a table for a list of rows, ``name: value`` lines for a mapping."""
    if isinstance(result, dict):
        width = max(len(key) for key in result)
        return "\n".join(f"{key:<{width}}  {_value(value)}" for key, value in result.items())
    if isinstance(result, list) and result and isinstance(result[0], dict):
        rows = [list(result[0])] + [[_value(row[key]) for key in result[0]] for row in result]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        )
    return str(result)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], Any]]] = {
    "demo": ("show the whole argument on CIFAR-10: distil, hash, compare, report", _declare_demo, _run_demo),
    "distill": ("distil a frozen teacher into a student, without labels", _declare_distill, _run_distill),
    "hash": ("train a hasher on labelled images", _declare_hash, _run_hash),
    "encode": ("turn images into a code table", _declare_encode, _run_encode),
    "evaluate": ("measure retrieval with two code tables", _declare_evaluate, _run_evaluate),
    "profile": ("count parameters and multiply-adds, and time networks", _declare_profile, _run_profile),
    "list": ("show every name that can be chosen", lambda parser: None, _run_list),
}
