"""The one exception that a user's mistake raises."""

from __future__ import annotations


class DistilhashError(ValueError):
    """A mistake that the user can mend: what is wrong, what was given, and what to do.

    The command line prints it as one sentence and exits with 2. ``what`` is required; ``got`` and ``fix`` are left out
    of the sentence when they are empty.
    """

    def __init__(self, what: str, got: object = "", fix: str = "") -> None:
        self.what = what
        self.got = str(got)
        self.fix = fix
        parts = [what]
        if self.got:
            parts.append(f"got {self.got}")
        if fix:
            parts.append(fix)
        super().__init__("; ".join(parts) + ".")


def unknown_name(kind: str, got: str, known: object) -> DistilhashError:
    """The error for a name that is not in a table: it lists the known ones (any iterable of strings)."""
    names = ", ".join(sorted(known))  # type: ignore[call-overload]
    return DistilhashError(f"unknown {kind}", repr(got), f"choose one of: {names}")
