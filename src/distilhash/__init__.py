"""distilhash: distil a pretrained image teacher without labels, hash the student, measure the trade-off, and search.

Every command of the command line is a function here (``distilhash.distill``, ``distilhash.index``, ...), with ``Index``
and the configs beside them. Nothing heavy is imported before one of them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from distilhash.errors import DistilhashError

if TYPE_CHECKING:
    from distilhash.api import (
        check,
        code,
        demo,
        distill,
        encode,
        evaluate,
        export,
        fit,
        hash,
        index,
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
        StudentConfig,
        TeacherConfig,
    )
    from distilhash.retrieval import Index

__version__ = "0.1.0"

_COMMANDS = (
    "check", "code", "demo", "distill", "encode", "evaluate", "export", "fit", "hash", "index", "profile", "reproduce",
    "search", "serve",
)  # fmt: skip
_CONFIGS = (
    "DemoConfig", "DistillConfig", "ExportConfig", "FitConfig", "HashConfig", "InputConfig", "ReproduceConfig",
    "StudentConfig", "TeacherConfig",
)  # fmt: skip
_HOMES = {
    **dict.fromkeys(_COMMANDS, "distilhash.api"),
    **dict.fromkeys(_CONFIGS, "distilhash.config"),
    "Index": "distilhash.retrieval",
}
# Not hash: it would shadow Python's own in `from distilhash import *`.
__all__ = ["DistilhashError", *(name for name in _HOMES if name != "hash")]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    # Imported here, when it is first used: NumPy alone takes a tenth of a second.
    if name not in _HOMES:
        raise AttributeError(f"module 'distilhash' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
