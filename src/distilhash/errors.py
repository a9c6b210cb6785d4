"""The one exception that a user's mistake raises, and its true words for what the operating system refuses."""

from __future__ import annotations

import difflib
import errno
import importlib.util
import re
from collections.abc import Iterable

# Control characters, line ends, marks that reverse the order of text, and what is no character.
_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_RIGHTS = "give yourself the rights to it, or choose another place"
_LACKING = "this file system does not offer that, as some network disks have no locks; choose a place on a local disk"
_HANDLES = "too many files are open; close some programs or raise the limit (ulimit -n)"
REMEDIES = {
    errno.ENOSPC: "free some room, or choose another place",
    errno.EDQUOT: "your quota on this disk is used up; free some room, or choose another place",
    errno.EFBIG: "this file system or a limit (ulimit -f) allows no file of this size; choose another place",
    errno.EROFS: "this disk is mounted for reading only; choose another place",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: "the disk or its connection fails; see to that, then try again",
    errno.ESTALE: "the disk or its connection fails; see to that, then try again",
    errno.EBUSY: "another program is using it; close that one, then try again",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle; name the real file or folder",
    errno.ENOTDIR: "a part of this path is a file; choose another path",
    errno.EISDIR: "this is a folder; name a file",
    errno.EMFILE: _HANDLES,
    errno.ENFILE: _HANDLES,
    errno.ENOMEM: "the memory does not suffice; close some programs",
    errno.ENOLCK: _LACKING,
    errno.ENOSYS: _LACKING,
    errno.EOPNOTSUPP: _LACKING,
}
TRAIN = ("torch", "torchvision", "timm", "matplotlib", "jinja2", "onnxscript")  # modules that the extra "train" brings


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
        super().__init__(printable("; ".join(parts) + "."))


def unknown_name(kind: str, got: str, known: Iterable[str]) -> DistilhashError:
    """The error for a name that is not in a table: it names the one that was probably meant, and lists all."""
    names = sorted(known)
    fixes = (did_you_mean(got, names), f"choose one of: {', '.join(names)}")
    return DistilhashError(f"unknown {kind}", repr(got), "; ".join(filter(None, fixes)))


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Words for the known name that is most like the given one, whole or behind its last slash; or none."""
    whole = {part: name for name in known for part in (name.rpartition("/")[2], name)}
    close = difflib.get_close_matches(got, whole, n=1)
    return f"did you mean {whole[close[0]]}" if close else ""


def refused(what: str, error: OSError, then: str = "") -> DistilhashError:
    """The error for what the operating system refuses: its reason, and what to do about this reason.

    Args:
        what: what was tried, with the path.
        error: the refusal.
        then: what became of the work, or how it goes on.
    """
    remedy = REMEDIES.get(error.errno or 0, "")
    return DistilhashError(what, error.strerror or error, "; ".join(filter(None, (remedy, then))))


def require_train(needed_by: str) -> None:
    """Raise DistilhashError where a package of the extra "train" is missing.

    Args:
        needed_by: the subject of the sentence, such as "distillation".
    """
    lacking = [name for name in TRAIN if importlib.util.find_spec(name) is None]
    if lacking:
        what = f"{needed_by} needs the extra 'train'"
        raise DistilhashError(what, f"no {', '.join(lacking)}", "pip install 'distilhash[train]'")


def printable(text: str) -> str:
    """Text that acts on no terminal: control characters and bytes that are not UTF-8, as in file names, are escaped."""
    return _ACTING.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()
