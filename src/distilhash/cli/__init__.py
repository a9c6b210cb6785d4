"""The command line: the only room that parses arguments, prints results and exits.

Results go to stdout (``--json`` for machines), progress and logs to stderr. Exit codes: 0 done, 2 the user's mistake
(one sentence), 1 ours.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from distilhash.cli import checking, exporting, fitting, pipeline, searching, serving
from distilhash.cli.flags import Refused, Verbs, to_stderr
from distilhash.device import choose
from distilhash.errors import DistilhashError
from distilhash.progress import console, log

VERBS: Verbs = {
    **pipeline.VERBS, **checking.VERBS, **exporting.VERBS, **fitting.VERBS, **searching.VERBS, **serving.VERBS,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code: 0, 2 for the user's mistake, 130 for Ctrl-C; our own bugs raise."""
    options = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken images: they are reported in one line of our own
    mistake: DistilhashError | None = None
    _show_log(quiet=getattr(options, "quiet", False))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some libraries print; stdout is for the result
            if "device" in options:
                choose(options.device)
            result = options.run(options)
    except DistilhashError as error:
        result = Refused(None, error)
    except KeyboardInterrupt:
        kept = "nothing was written"
        if "resume" in options:
            kept = "the same command with --resume goes on from the last saved state"
        elif options.verb == "index":
            kept = "the same command goes on from the last photos that were kept"
        to_stderr(f"distilhash: interrupted; {kept}.")
        return 130
    if isinstance(result, Refused):
        result, mistake = result.result, result.mistake
    if result is not None:
        print(json.dumps(result, indent=2) if options.json else _plain(result))
    if mistake is not None:
        to_stderr(f"distilhash: {' '.join(str(mistake).split())}")  # one line, whatever a library's message brought
        return 2
    return 0


class _LogHandler(logging.Handler):
    """Writes to stderr: above the progress bar in a terminal, as plain lines elsewhere."""

    def emit(self, record: logging.LogRecord) -> None:
        if console.is_terminal:
            console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)
        else:
            to_stderr(self.format(record))


def _show_log(*, quiet: bool) -> None:
    for handler in log.handlers[:]:
        log.removeHandler(handler)
    log.addHandler(_LogHandler())
    log.setLevel(logging.WARNING if quiet else logging.INFO)


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
