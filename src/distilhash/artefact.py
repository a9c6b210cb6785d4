"""What a stage leaves on disk: written whole or not at all, and able to say where it came from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.errors import UserError


def write_atomically(path: Path, write: bytes | str | Callable[[Path], None]) -> None:
    """Write a file so that a reader, a crash or a full disk finds the old file or the new one, never a part.

    ``write`` is the content, or a function that writes the file at the path it is given. Raises UserError where the
    disk refuses; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(write):
            write(temporary)
        else:
            temporary.write_bytes(write.encode() if isinstance(write, str) else write)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}",
            error.strerror or error,
            "free some room or choose another place; nothing was changed",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened, and the rename is already durable
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """Write JSON data atomically, in a form that people can read and diff."""
    write_atomically(path, json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """The JSON data in a file; UserError where it is missing or not JSON. ``what`` names it in the sentence."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {what} here", path, "run the stage that writes it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{what} cannot be read", f"{path} ({error})", "delete it and run its stage again") from error


def fingerprint_of_indices(indices: np.ndarray) -> str:
    """Sixteen hex digits that name a list of image indices, its order included."""
    return hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()[:16]


def provenance(**made_from: Any) -> dict[str, Any]:
    """Where an artefact comes from: the command, versions and class of machine, and what the caller adds."""
    versions = {name: metadata.version(name) for name in ("distilhash", "numpy", "torch", "torchvision", "timm")}
    return {
        "command": " ".join(["distilhash", *sys.argv[1:]]),
        "versions": versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        **made_from,
    }
