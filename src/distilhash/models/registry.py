"""Networks of the user's own as students, by name.

    @models.register("mine")
    def mine(size):  # the side of the input, pixels
        return nn.Sequential(...)  # images (N, 3, size, size) to features (N, D)

Such a network is chosen, saved and loaded by its name. "FILE.py:FUNCTION" names a function that is not registered yet.
A checkpoint may name any file, and so never runs one: it is loaded where its network is registered, or named in the
environment variable DISTILHASH_NETWORKS.

Shapes: N images, D features.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import nn

from distilhash.errors import DistilhashError

Builder = Callable[[int], nn.Module]
B = TypeVar("B", bound=Builder)

NETWORKS: dict[str, Builder] = {}
ALLOWED = "DISTILHASH_NETWORKS"  # FILE.py:FUNCTION, several separated by commas
_FUNCTION = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


def register(name: str) -> Callable[[B], B]:
    """Make a network known by a name, which ``StudentConfig.name`` then takes."""

    def keep(builder: B) -> B:
        NETWORKS[name] = builder
        return builder

    return keep


def builder_of(name: str, *, trusted: bool) -> Builder | None:
    """What makes the network of this name; None for a name that cannot be one.

    Args:
        trusted: whether the user gave the name, so that a file which it names may run.

    Raises:
        DistilhashError: the file or its function is missing, or may not run.
    """
    found = _FUNCTION.fullmatch(name)
    if name in NETWORKS or found is None:
        return NETWORKS.get(name)
    if not trusted and name not in os.environ.get(ALLOWED, "").split(","):
        fix = f"if you trust this file: {ALLOWED}={name}, or models.register({name!r}) in Python"
        raise DistilhashError("the network of this checkpoint is not registered", name, fix)
    if not Path(found[1]).is_file():
        raise DistilhashError("there is no such file of a network", found[1], "write FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(Path(found[1]).stem, found[1])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        got = f"{found[1]} ({type(error).__name__}: {error})"
        raise DistilhashError("the file of a network cannot be run", got, "mend it") from error
    if not callable(getattr(module, found[2], None)):
        raise DistilhashError("the file of a network has no such function", name)
    NETWORKS[name] = getattr(module, found[2])
    return NETWORKS[name]
