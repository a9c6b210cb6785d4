"""Flags shared by verbs: one for each field of a config, where images come from, and where a run goes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro._docstrings

from distilhash.errors import DistilhashError

Declare = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], Any]
Verbs = dict[str, tuple[str, str, Declare, Run]]  # what it reads, what it does, its flags, the verb itself


@dataclasses.dataclass(frozen=True)
class Refused:
    """What a verb returns that has a result to print although it ends with the user's mistake (exit code 2)."""

    result: Any
    mistake: DistilhashError


def add_settings(
    parser: argparse.ArgumentParser, config: type, title: str, *, prefix: str = "", skip: str = "", defaults: Any = None
) -> None:
    """One flag for each field of a config, with its sentence and default: the config's own, or that of ``defaults``."""
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip.split():
            continue
        kind = hints[field.name]
        if typing.get_origin(kind) is typing.Literal:
            kind = str
        default = field.default if defaults is None else getattr(defaults, field.name)
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        flags = [f"--{prefix}{field.name.replace('_', '-')}"]
        if prefix and field.name == "name":
            flags = [f"--{prefix.rstrip('-')}", *flags]  # --teacher, and --teacher-name as the other settings have it
        text, dest = (
            (tyro._docstrings.get_field_docstring(config, field.name, ()) or "").replace("%", "%%"),
            prefix.replace("-", "_") + field.name,
        )
        if kind is bool:
            group.add_argument(*flags, action="store_true", help=text)
        else:
            text += "" if default is None else f" (default: {default})"
            group.add_argument(*flags, dest=dest, type=kind, default=default, metavar=kind.__name__.upper(), help=text)


def settings(options: argparse.Namespace, config: type[Any], *, prefix: str = "", **given: Any) -> Any:
    """The config that the flags of :func:`add_settings` describe."""
    prefix = prefix.replace("-", "_")
    names = [field.name for field in dataclasses.fields(config) if hasattr(options, prefix + field.name)]
    return config(**{name: getattr(options, prefix + name) for name in names} | given)


def add_run_directory(parser: argparse.ArgumentParser, default: str) -> None:
    """--output, --resume or --overwrite, and --quiet."""
    parser.add_argument(
        "--output", type=Path, default=Path(default), metavar="DIR", help="run directory (default: %(default)s)"
    )
    rerun = parser.add_mutually_exclusive_group()
    rerun.add_argument("--resume", action="store_true", help="go on with the run in this directory")
    rerun.add_argument("--overwrite", action="store_true", help="replace the run in this directory")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device, which ``main`` hands over before the verb runs."""
    text = '"auto" (a GPU where there is one), "cpu", "cuda", "cuda:N" or "mps"; left out: DISTILHASH_DEVICE or auto'
    parser.add_argument("--device", metavar="NAME", help=text)


def add_hasher_of_index(parser: argparse.ArgumentParser) -> None:
    """--hasher and --int8 of verbs that ask an index."""
    parser.add_argument("--hasher", metavar="DIR", help="where the index's hasher is; left out: where it was")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="the int8 model of an exported hasher; left out: as the index was made, or float32 of --hasher",
    )


def add_images(parser: argparse.ArgumentParser) -> None:
    """IMAGES and how they are split."""
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


def image_options(options: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_images` asked for, but for the images."""
    return {name: getattr(options, name) for name in ("protocol", "split_seed", "split")}


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_run_directory` asked for, but for the directory."""
    return {name: getattr(options, name) for name in ("resume", "overwrite")}


def to_stderr(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
