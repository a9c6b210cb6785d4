"""Files that are either the old one or the whole new one, whatever happens during the writing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from distilhash.errors import UserError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` on a new file beside ``path``, flush it to the disk, and put it in the place of ``path``.

    Two processes may do so at once: the last one wins. Where the writing fails nothing is left behind, and a failure
    of the disk (full, read-only) is a UserError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            "a file cannot be written", f"{path}: {error.strerror or error}", "free some space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
