"""distilhash: distil an untouched image teacher without labels, hash the student, prove the trade-off, search.

The verbs of the command line as functions; nothing heavy is imported before one of them is used.
"""

from __future__ import annotations

import os
from typing import Any

# Read by OpenMP when torch is loaded. Threads that wait by spinning take the core from whoever has work: with one
# other busy process on two cores, training ran thirty times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from distilhash.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "UserError", "check", "code", "demo", "distill", "encode", "evaluate", "export", "fit", "hash", "index", "profile",
    "reproduce", "search", "serve",
]  # fmt: skip

_HOMES = {
    "check": ("distilhash.stages", "check_images"),
    "code": ("distilhash.search.verbs", "code"),
    "demo": ("distilhash.comparison", "run_demo"),
    "distill": ("distilhash.stages", "distill"),
    "encode": ("distilhash.stages", "encode_images"),
    "evaluate": ("distilhash.evaluation.protocol", "evaluate_files"),
    "export": ("distilhash.exporting", "export_hasher"),
    "fit": ("distilhash.fitting", "fit"),
    "hash": ("distilhash.stages", "hash_images"),
    "index": ("distilhash.search.verbs", "index"),
    "profile": ("distilhash.stages", "profile_networks"),
    "reproduce": ("distilhash.reproduction", "reproduce"),
    "serve": ("distilhash.search.serving", "serve"),
}


def __getattr__(name: str) -> Any:
    if name == "search":  # both the verb and the room that Index comes from: a package that can be called
        import distilhash.search

        return distilhash.search
    if name not in _HOMES:
        raise AttributeError(f"module 'distilhash' has no attribute {name!r}")
    from importlib import import_module

    module, function = _HOMES[name]
    return getattr(import_module(module), function)
