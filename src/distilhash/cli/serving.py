"""The verb that shows an index in a browser: serve."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from distilhash.cli.flags import Verbs, add_hasher_of_index, to_stderr

TOKEN = "DISTILHASH_TOKEN"


def _declare_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="INDEX", help="what distilhash index wrote")
    parser.add_argument(
        "--port", type=int, default=8765, metavar="INT", help="0 takes a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="address of this computer to serve on; one that others reach needs a token (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--token", metavar="TEXT",
        help="what every request must bring, 16 characters or more: open the page once as /?token=TEXT; others on this "
        f"computer may see it here in the list of processes, and not where it is left out and {TOKEN} holds it",
    )  # fmt: skip
    parser.add_argument(
        "--host-name", action="append", default=[], metavar="NAME",
        help="another name that browsers know this computer by; may be repeated",
    )  # fmt: skip
    add_hasher_of_index(parser)


def _run_serve(options: argparse.Namespace) -> Any:
    from distilhash.api import serve

    kept = os.environ.pop(TOKEN, None)  # the processes that meet foreign images do not inherit it
    token = kept if options.token is None else options.token
    serve(
        options.index, host=options.host, port=options.port, token=token, hasher=options.hasher,
        int8=options.int8, host_names=options.host_name,
    )  # fmt: skip
    to_stderr("ended")


VERBS: Verbs = {
    "serve": ("INDEX", "show the photos of an index on a page, and those that are alike", _declare_serve, _run_serve),
}
