"""What a command leaves on disk: written whole or not at all, and able to say where it came from."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import platform
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from distilhash import __version__
from distilhash.errors import DistilhashError, refused

if TYPE_CHECKING:
    import numpy as np


def write_atomically(path: str | Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader, a crash or a full disk finds the old file or the new one, never a part.

    Two processes may do so at once: the last one wins.

    Args:
        path: the file; its directory is made where it is missing.
        content: what to write, or a function that writes to the open file it is given.

    Raises:
        DistilhashError: the disk refuses; nothing is left behind.
    """
    path, then = Path(path), "nothing was changed"
    temporary = _beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        then = ""
        _sync(path.parent)
    except OSError as error:
        raise refused(f"cannot write {path}", error, then) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_directory_atomically(path: str | Path) -> Iterator[Path]:
    """Write a directory whole or not at all, also where it replaces another.

    A directory cannot be renamed onto one that holds files, so for a moment the old one stands aside under a hidden
    name. Where the process is killed in that moment, the next call for this path puts it back.

    Yields:
        An empty directory beside it, to be filled. Where the block raises, nothing is changed.

    Raises:
        DistilhashError: the disk refuses.
    """
    path = Path(path).resolve()
    restore_directory(path)
    temporary, aside, then = _beside(path, "tmp"), _beside(path, "old"), "nothing was changed"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        replaced = path.exists()
        if replaced:
            path.rename(aside)
        try:
            temporary.rename(path)
        except OSError:
            if replaced:
                aside.rename(path)
            raise
        then = ""
        if replaced:
            aside.rename(temporary)  # what is half deleted must not be put back
        _sync(path.parent)
    except OSError as error:
        # What the block reads is named; what it writes lies in a folder whose name means nothing to the user.
        foreign = error.filename if str(temporary) not in str(error.filename or temporary) else None
        raise refused(f"cannot open {foreign}" if foreign else f"cannot write {path}", error, then) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore_directory(path: str | Path) -> None:
    """Put back the directory that a killed process had moved aside, and delete what else such processes left."""
    path = Path(path).resolve()
    for place in [*path.parent.glob(f".{glob.escape(path.name)}.*.*.*")]:
        owner = place.name.split(".")[-3]
        if place.suffix not in (".tmp", ".old") or not owner.isdecimal() or _alive(int(owner)):
            continue
        if place.suffix == ".old" and not path.exists():
            place.rename(path)
        else:
            shutil.rmtree(place, ignore_errors=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.{suffix}")


def _alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere there is no harmless signal
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a directory."""
    if path.is_dir() and os.name != "posix":  # elsewhere a directory cannot be opened, and renames are durable
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network disks do not sync the names in a directory
            raise
    finally:
        os.close(handle)


def to_json(data: Any, **options: Any) -> str:
    """JSON text of plain data, with the options of ``json.dumps``; a number that is undefined or infinite is null."""
    return json.dumps(_with_nulls(data), allow_nan=False, **options)


def _with_nulls(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _with_nulls(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_with_nulls(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON data atomically, in a form that people can read and diff."""
    write_atomically(path, to_json(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """The JSON data in a file; DistilhashError, which names ``what``, where it is missing or not JSON."""
    path = readable_file(path, f"no {what} here", "run the command that writes it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        fix = "bring back a copy, or run its command again with another output"
        raise DistilhashError(f"{what} cannot be read", f"{path} ({error})", fix) from error


def readable_file(path: str | Path, missing: str, fix: str) -> Path:
    """The path of a file that can be opened, told before a library gives one reason for all.

    Raises:
        DistilhashError: ``missing`` and ``fix``, where there is none; the system's reason, where it cannot be opened.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DistilhashError(missing, path, fix)
        with path.open("rb"):
            return path
    except (FileNotFoundError, NotADirectoryError):
        raise DistilhashError(missing, path, fix) from None
    except OSError as error:
        raise refused(f"cannot open {path}", error) from error


def fingerprint_of_indices(indices: np.ndarray) -> str:
    """Sixteen hex digits that name a list of image indices, its order included."""
    import numpy as np  # here, as the start of the command line reads this module, too

    return hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()[:16]


def provenance(**made_from: Any) -> dict[str, Any]:
    """Where an artefact comes from: the command, versions, the machine, and JSON data on what was read.

    With PyTorch loaded the machine includes threads, instruction set and build.
    """
    from importlib import metadata  # here, as it takes a tenth of the command line's start

    versions = {"distilhash": __version__}
    for name in ("numpy", "torch", "torchvision", "timm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if torch := sys.modules.get("torch"):  # what decides the last digits of what it computes
        capability = torch.backends.cpu.get_cpu_capability()
        machine += f", {torch.get_num_threads()} threads, {capability}, PyTorch {torch.__version__}"
    return {
        "command": " ".join(["distilhash", *sys.argv[1:]]),
        "versions": versions,
        "python": platform.python_version(),
        "machine": machine,
        **made_from,
    }
