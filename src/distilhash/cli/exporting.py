"""The verb that takes a hasher out of PyTorch: export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distilhash.cli.flags import Verbs, add_images, add_settings, image_options, settings
from distilhash.config import ExportConfig


def _declare_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hasher", metavar="HASHER", type=Path, help="run directory or model of a hasher")
    add_images(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("exported"), metavar="DIR", help="directory (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the exported hasher in this directory")
    add_settings(parser, ExportConfig, "export")


def _run_export(options: argparse.Namespace) -> Any:
    from distilhash.api import export

    report = export(
        options.hasher, options.output, options.images, config=settings(options, ExportConfig),
        overwrite=options.overwrite, **image_options(options),
    )  # fmt: skip
    if options.json:
        return report
    return f"{report['verdict']}\n\nThe report: {options.output / 'README.md'}"


VERBS: Verbs = {
    "export": ("HASHER IMAGES", "write a hasher as ONNX, in float32 and int8", _declare_export, _run_export),
}
