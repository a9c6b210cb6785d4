"""A run directory: the settings, the log, the metrics and the last checkpoint of one training run.

    config.json  provenance.json  images.txt  metrics.jsonl  train.log  checkpoints/last/state.safetensors  model/

A run that was killed is continued from its last state; what was logged after that state is cut off first, so an
interrupted run ends with the files of an uninterrupted one. provenance.json, the first file, says that the directory
is ours; config.json, the second, that the run has begun; model/model.safetensors, the last, that it is finished.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from distilhash.checkpoint import load_tensors, save_tensors
from distilhash.data.sources import ImageSource
from distilhash.data.splits import images_of, matched
from distilhash.errors import DistilhashError, refused
from distilhash.files import provenance, read_json, to_json, write_atomically, write_json
from distilhash.progress import log
from distilhash.training.optim import Optimizers

TEMPORARY = ".*.tmp"  # names of files that are being written
# What is there before a stage makes anything.
PREAMBLE = {"provenance.json", "config.json", "images.txt", "split.json", "train.log"}
SHOWN = 3  # differing settings that an error names


class RunDirectory:
    """The directory of one run, opened fresh, resumed or overwritten.

    Args:
        path: made where it is missing.
        settings: JSON data, kept in config.json.
        images: whose fingerprint is settings["images"]; of files, images.txt keeps digests and names.
        resume, overwrite: continue or delete the run that is there, if one is.

    Raises:
        DistilhashError: the directory holds files and neither ``resume`` nor ``overwrite`` is set; ``resume`` finds
            other settings; ``overwrite`` finds what no run wrote.
    """

    def __init__(
        self, path: str | Path, settings: dict[str, Any], *, images: ImageSource | None = None, resume: bool = False,
        overwrite: bool = False,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self._last_save = time.monotonic()
        settings = json.loads(json.dumps(settings))
        if self.path.exists() and not self.path.is_dir():
            raise DistilhashError("a run needs a directory", f"the file {self.path}", "choose another path")
        held = self.path.is_dir() and any(not entry.match(TEMPORARY) for entry in self.path.iterdir())
        ours = held and _is_run(self.path)
        if overwrite and held and not ours:  # --overwrite deletes: never what no run wrote
            fix = "choose another path or empty it yourself"
            raise DistilhashError("--overwrite deletes only a run directory", self.path, fix)
        if ours and (overwrite or not (self.path / "config.json").exists()):
            _delete(self.path)
        elif held and resume:
            began = read_json(self.path / "config.json", "run")
            if images is not None and began.get("images") != images.fingerprint:
                _refuse_images(images, self.path)
            _compare(began, settings, self.path)
        elif held:
            fix = "continue it with --resume or replace it with --overwrite"
            raise DistilhashError("the run directory exists", self.path, fix)
        for remains in self.path.rglob(TEMPORARY):  # of a write that was killed
            remains.unlink(missing_ok=True)
        if not (self.path / "config.json").exists():
            write_json(self.path / "provenance.json", provenance())
            if images is not None and images.decodes:
                write_atomically(self.path / "images.txt", "".join(f"{line}\n" for line in images_of(images)))
            write_json(self.path / "config.json", settings)
        if self.finished:
            self.drop_state()

    def __enter__(self) -> RunDirectory:
        """The run itself; see :meth:`__exit__`."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Remove the directory of a run that a DistilhashError ended at once, so that the next try is not refused."""
        made = {path.name for path in self.path.rglob("*") if path.is_file()}
        if isinstance(error, DistilhashError) and made <= PREAMBLE:
            shutil.rmtree(self.path)

    @property
    def finished(self) -> bool:
        """Whether the run has written its model."""
        return (self.path / "model" / "model.safetensors").is_file()

    def log(self, text: str) -> None:
        """Log a line, and keep it in train.log."""
        log.info("%s", text)
        self._append("train.log", text)

    def record(self, step: int, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        self._append("metrics.jsonl", to_json({"step": step, **values}))

    def record_epoch(self, optimizers: Optimizers, step: int, epoch: int, measured: dict[str, float]) -> None:
        """Log and record the end of an epoch and what was measured after it; the sum of losses begins anew."""
        loss = (optimizers.losses_2[0] / optimizers.losses_2[1]).item()
        shown = "".join(f"  {name} {value:.3f}" for name, value in measured.items())
        self.log(f"{optimizers.stage}  epoch {epoch}  loss {loss:.4f}{shown}")
        self.record(step, epoch=epoch, loss=loss, **measured)
        optimizers.losses_2.zero_()

    @staticmethod
    def metrics_in(path: str | Path) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl in a run directory that need not be open."""
        lines: list[dict[str, Any]] = []
        file = Path(path) / "metrics.jsonl"
        if file.exists():
            for text in file.read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(text))
                except ValueError:  # a kill in mid-write leaves at most one broken line, the last
                    break
        return lines

    def restore(self, optimizers: Optimizers) -> int:
        """Put the last saved state back, if there is one, and return how many steps were finished then."""
        tensors, step = self.load_state()
        if tensors:
            optimizers.losses_2.copy_(tensors.pop("losses"))
            optimizers.unpack(tensors)
            self.log(f"{optimizers.stage} goes on from step {step:,} of {optimizers.steps:,}")
        return step

    def save_if_due(self, optimizers: Optimizers, step: int, every_seconds: float) -> None:
        """Save the state after ``step`` finished steps where the last save is old enough; one that is not finite stops.

        Raises:
            DistilhashError: the state is not finite; the last one that was is kept.
        """
        if self.state_is_due(every_seconds):
            optimizers.check(step)
            self.save_state(optimizers.pack() | {"losses": optimizers.losses_2}, step)

    def state_is_due(self, every_seconds: float) -> bool:
        """Whether the last save of the training state is older than ``every_seconds``."""
        return time.monotonic() - self._last_save >= every_seconds

    def save_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Save the training state that follows ``step`` finished steps."""
        save_tensors(self._state_file, tensors, {"step": step})
        self._last_save = time.monotonic()

    def load_state(self) -> tuple[dict[str, Tensor], int]:
        """The last saved state and its step, or no tensors and step 0; later metrics are cut off."""
        tensors, step = dict[str, Tensor](), 0
        kept: list[dict[str, Any]] = []  # none without a state: the line of step 0 will be written again
        if self._state_file.exists():
            tensors, description = load_tensors(self._state_file, "training state")
            step = int(description["step"])
            kept = [line for line in self.metrics_in(self.path) if line["step"] <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(to_json(line) + "\n" for line in kept))
        return tensors, step

    def drop_state(self) -> None:
        """Remove the training state of a run that has written its model."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def _append(self, name: str, line: str) -> None:
        try:
            with (self.path / name).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
        except OSError as error:
            raise refused(f"cannot write {self.path / name}", error, "then go on with --resume") from error

    @property
    def _state_file(self) -> Path:
        return self.path / "checkpoints" / "last" / "state.safetensors"


def _is_run(path: Path) -> bool:
    """Whether a run wrote this directory."""
    try:
        return "distilhash" in json.loads((path / "provenance.json").read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _delete(path: Path) -> None:
    """Empty a run directory, so that a kill in the midst leaves one that has not begun, and is still a run's."""
    (path / "config.json").unlink(missing_ok=True)
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != "provenance.json":
            entry.unlink()


def _refuse_images(images: ImageSource, path: Path) -> None:
    """Say what has happened to the images of a run, where it is known which they were."""
    if not (path / "images.txt").is_file():
        return
    before = (path / "images.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    changes = matched(before, images_of(images))[1]
    fix = "put them back as they were, or name another --output"
    raise DistilhashError(f"the run at {path} began with other images", changes, fix)


def _compare(old: Any, new: dict[str, Any], path: Path) -> None:
    was, now = _flat(old), _flat(new)
    differing = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    if differing:
        shown = ", ".join(f"{key} was {was.get(key)!r} and is {now.get(key)!r}" for key in differing[:SHOWN])
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        fix = "resume with the same ones, or start anew with --overwrite"
        raise DistilhashError(f"the run at {path} has other settings", shown + more, fix)


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"distill.epochs": 8}, so that an error can name the one that differs."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    return {
        name: value
        for key, part in settings.items()
        for name, value in _flat(part, f"{prefix}.{key}" if prefix else key).items()
    }
