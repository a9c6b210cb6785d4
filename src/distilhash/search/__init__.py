"""Search: codes of a folder of photographs in one file, found by Hamming distance.

``distilhash.search(...)`` is also the verb, so this module can be called: see ``search.verbs.search``.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from distilhash.search.index import ENGINES, Index

__all__ = ["ENGINES", "Index"]


class _Verb(types.ModuleType):
    """A package that is also a function."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        from distilhash.search.verbs import search

        return search(*arguments, **settings)


sys.modules[__name__].__class__ = _Verb
