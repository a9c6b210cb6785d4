"""distilhash: distil a pretrained image teacher without labels, hash the student, measure the trade-off, and search.

Every command of the command line is a function here (``distilhash.distill``, ``distilhash.index``, ...), with
``Hasher``, ``Index`` and the configs beside them. A name is imported when it is first used, so that importing the
package loads no library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distilhash.api import (
        check,
        code,
        demo,
        distill,
        duplicates,
        encode,
        evaluate,
        export,
        fit,
        hash,  # noqa: F401  (not in __all__)
        index,
        info,
        profile,
        reproduce,
        search,
        serve,
    )
    from distilhash.config import (
        DemoConfig,
        DistillConfig,
        ExportConfig,
        FitConfig,
        HashConfig,
        InputConfig,
        ReproduceConfig,
        ScanConfig,
        StudentConfig,
        TeacherConfig,
    )
    from distilhash.errors import DistilhashError
    from distilhash.hasher import Hasher
    from distilhash.retrieval import Index

__version__ = "0.1.0"

_COMMANDS = [
    "check", "code", "demo", "distill", "duplicates", "encode", "evaluate", "export", "fit", "hash", "index", "info",
    "profile", "reproduce", "search", "serve",
]  # fmt: skip
# Without hash: `from distilhash import *` would replace Python's own.
__all__ = [
    "DemoConfig", "DistilhashError", "DistillConfig", "ExportConfig", "FitConfig", "HashConfig", "Hasher", "Index",
    "InputConfig", "ReproduceConfig", "ScanConfig", "StudentConfig", "TeacherConfig", "check", "code", "demo",
    "distill", "duplicates", "encode", "evaluate", "export", "fit", "index", "info", "profile", "reproduce", "search",
    "serve",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _COMMANDS:
        home = "api"
    elif name in __all__:
        home = {"Hasher": "hasher", "Index": "retrieval", "DistilhashError": "errors"}.get(name, "config")
    else:
        raise AttributeError(f"module 'distilhash' has no attribute {name!r}")
    return getattr(import_module(f"distilhash.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_COMMANDS})
