"""What a stage leaves on disk: written whole or not at all, and able to say where it came from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distilhash.errors import DistilhashError


def write_atomically(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader, a crash or a full disk finds the old file or the new one, never a part.

    ``content`` is what to write, or a function that writes to the open file it is given. Two processes may do so at
    once: the last one wins. Errors: DistilhashError where the disk refuses; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise DistilhashError(
            f"cannot write {path}", reason, "free some room or choose another place; nothing was changed"
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
    """The JSON data in a file; DistilhashError where it is missing or not JSON. ``what`` names it in the sentence."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DistilhashError(f"no {what} here", path, "run the stage that writes it") from None
    except (OSError, ValueError) as error:
        raise DistilhashError(
            f"{what} cannot be read", f"{path} ({error})", "delete it and run its stage again"
        ) from error


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
