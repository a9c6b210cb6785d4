"""The command line: the only file that parses arguments, prints results and exits.

Results go to stdout (``--json`` for machines), progress and logs to stderr. Exit codes: 0 done, 2 the user's mistake
(one sentence), 1 ours.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from distilhash.config import DemoConfig, DistillConfig, HashConfig, StudentConfig, TeacherConfig
from distilhash.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code: 0, 2 for the user's mistake, 130 for Ctrl-C; our own bugs raise."""
    options = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken images: they are reported in one line of our own
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some libraries print; stdout is for the result
            result = options.run(options)
    except UserError as error:
        _stderr(f"distilhash: {' '.join(str(error).split())}")  # one line, whatever a library's message brought along
        return 2
    except KeyboardInterrupt:
        kept = "the same command with --resume goes on from the last saved state"
        _stderr(f"distilhash: interrupted; {kept if 'resume' in options else 'nothing was written'}.")
        return 130
    if result is not None:
        print(json.dumps(result, indent=2) if options.json else _plain(result))
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and name the verb whose help to read."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help.\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument {' '.join(unknown)}")
        return known, unknown


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="distilhash",
        description="Distil an untouched image teacher into a compact student without labels, hash it, and measure it.",
        epilog="distilhash VERB --help shows the settings of a verb, with units and defaults.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (reads, text, declare, run) in VERBS.items():
        verb = verbs.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".",
            usage=f"distilhash {' '.join([name, *reads.split(), '[settings]'])}",
            allow_abbrev=False,  # a shortened flag would change its meaning with the next setting
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
        flags = [f"--{prefix}{field.name.replace('_', '-')}"]
        if prefix and field.name == "name":
            flags = [f"--{prefix.rstrip('-')}", *flags]  # --teacher, and --teacher-name as the other settings have it
        text, dest = field.metadata["help"].replace("%", "%%"), prefix.replace("-", "_") + field.name
        if kind is bool:
            group.add_argument(*flags, action="store_true", help=text)
        else:
            text += "" if field.default is None else f" (default: {field.default})"
            group.add_argument(
                *flags, dest=dest, type=kind, default=field.default, metavar=kind.__name__.upper(), help=text
            )


def _settings(options: argparse.Namespace, config: type[Any], *, prefix: str = "", **given: Any) -> Any:
    """The config that the flags of :func:`_add_settings` describe."""
    prefix = prefix.replace("-", "_")
    names = [field.name for field in dataclasses.fields(config) if hasattr(options, prefix + field.name)]
    return config(**{name: getattr(options, prefix + name) for name in names} | given)


def _add_run_directory(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path(default), metavar="DIR", help="run directory (default: %(default)s)"
    )
    rerun = parser.add_mutually_exclusive_group()
    rerun.add_argument("--resume", action="store_true", help="go on with the run in this directory")
    rerun.add_argument("--overwrite", action="store_true", help="replace the run in this directory")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", metavar="IMAGES",
        help='"cifar10", a folder of images (class subfolders where labels are needed), or a folder with list files',
    )  # fmt: skip
    protocols = "CIFAR-10 only: cifar10, cifar10-1 or cifar10-2 (default: %(default)s)"
    parser.add_argument("--protocol", default="cifar10", metavar="NAME", help=protocols)
    parser.add_argument(
        "--split-seed", type=int, default=0, metavar="INT", help="seed of the split (default: %(default)s)"
    )
    parser.add_argument("--split", type=Path, metavar="FILE", help="split.json of an earlier run; left out: a new one")


def _declare_demo(parser: argparse.ArgumentParser) -> None:
    _add_run_directory(parser, "runs/demo")
    _add_settings(parser, DemoConfig, "what is run")


def _run_demo(options: argparse.Namespace) -> Any:
    from distilhash.comparison import run_demo
    from distilhash.evaluation.report import results_json, terminal_table

    arms = run_demo(_settings(options, DemoConfig), options.output, **_run_options(options))
    if options.json:
        return results_json(arms)
    return f"{terminal_table(arms)}\n\nThe report: {options.output / 'report.html'}"


def _declare_distill(parser: argparse.ArgumentParser) -> None:
    _add_images(parser)
    _add_run_directory(parser, "runs/distill")
    parser.add_argument("--features", type=Path, metavar="DIR", help="teacher feature cache; left out: in the run")
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
        help="a distilled student (run directory), v1 or v2 from scratch, or a teacher's name (default: %(default)s)",
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
    parser.add_argument("hasher", metavar="HASHER", type=Path, help="run directory or model of a hasher")
    _add_images(parser)
    parts = "which images of the split: all, query, database, train or validation (default: %(default)s)"
    parser.add_argument("--part", default="all", metavar="NAME", help=parts)
    parser.add_argument(
        "--output", type=Path, default=Path("codes.safetensors"), metavar="FILE",
        help="code table (default: %(default)s)",
    )  # fmt: skip


def _run_encode(options: argparse.Namespace) -> Any:
    from distilhash.stages import encode_images

    return encode_images(
        options.hasher, options.images, options.output, part=options.part, say=_stderr, **_image_options(options)
    )


def _declare_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", metavar="QUERY", type=Path, help="code table of the queries")
    parser.add_argument("database", metavar="DATABASE", type=Path, help="code table of the database")
    parser.add_argument("--at", type=int, metavar="K", help="also mAP@K, over the K nearest images, count")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the metrics and curves as JSON")


def _run_evaluate(options: argparse.Namespace) -> Any:
    from distilhash.evaluation.protocol import evaluate_files

    return evaluate_files(options.query, options.database, at=options.at, output=options.output)


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
    from distilhash.stages import profile_networks

    return profile_networks(options.networks, bits=options.bits, size=options.size, seconds=options.seconds)


def _run_list(options: argparse.Namespace) -> Any:
    from distilhash.stages import known_names

    return known_names()


def _image_options(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("protocol", "split_seed", "split")}


def _run_options(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("resume", "overwrite", "quiet")}


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


Declare = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], Any]

VERBS: dict[str, tuple[str, str, Declare, Run]] = {  # what it reads, what it does, its flags, the verb itself
    "demo": ("", "show the whole argument on CIFAR-10: distil, hash, compare, report", _declare_demo, _run_demo),
    "distill": ("IMAGES", "distil a frozen teacher into a student, without labels", _declare_distill, _run_distill),
    "hash": ("IMAGES", "train a hasher on labelled images", _declare_hash, _run_hash),
    "encode": ("HASHER IMAGES", "turn images into a code table", _declare_encode, _run_encode),
    "evaluate": ("QUERY DATABASE", "measure retrieval with two code tables", _declare_evaluate, _run_evaluate),
    "profile": (
        "NETWORK...", "count parameters and multiply-adds, and time networks", _declare_profile, _run_profile
    ),
    "list": ("", "show every name that can be chosen", lambda parser: None, _run_list),
}  # fmt: skip
