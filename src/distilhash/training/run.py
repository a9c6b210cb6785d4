"""A run directory: the settings, the log, the metrics and the last state of one training run.

    config.json  provenance.json  metrics.jsonl  train.log  checkpoints/last/state.safetensors  model/

A run that was killed is continued from its last state; what was logged after that state is cut off first, so an
interrupted run ends with the files of an uninterrupted one.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from distilhash.artefact import provenance, read_json, write_atomically, write_json
from distilhash.checkpoint import load_tensors, save_tensors
from distilhash.errors import UserError


class RunDirectory:
    """The directory of one run, opened fresh, resumed or overwritten.

    Raises UserError where ``path`` holds files and neither ``resume`` nor ``overwrite`` is given, or where ``resume``
    finds other settings.
    """

    def __init__(
        self,
        path: str | Path,
        settings: dict[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        quiet: bool = False,
    ) -> None:
        self.path = Path(path)
        self.quiet = quiet
        self._last_save = time.monotonic()
        settings = json.loads(json.dumps(settings))
        if self.path.exists() and not self.path.is_dir():
            raise UserError("a run needs a directory", f"the file {self.path}", "choose another path")
        held = self.path.is_dir() and any(self.path.iterdir())
        if held and overwrite:
            _refuse_foreign(self.path)
            shutil.rmtree(self.path)
        elif held and resume:
            _compare(read_json(self.path / "config.json", "run"), settings, self.path)
        elif held:
            raise UserError(
                "the run directory exists", self.path, "continue it with --resume or replace it with --overwrite"
            )
        write_json(self.path / "config.json", settings)
        if not (self.path / "provenance.json").exists():
            write_json(self.path / "provenance.json", provenance())

    @property
    def finished(self) -> bool:
        """Whether the run has written its model."""
        return (self.path / "model" / "model.safetensors").is_file()

    def say(self, text: str) -> None:
        """Show a line of progress on stderr and keep it in train.log."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)
        with (self.path / "train.log").open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def record(self, step: int, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
            metrics.write(json.dumps({"step": step, **values}) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return self.metrics_in(self.path)

    @staticmethod
    def metrics_in(path: Path) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl in a run directory that need not be open."""
        return _whole_lines(path / "metrics.jsonl")

    def state_is_due(self, every_seconds: float) -> bool:
        """Whether the last save of the training state is older than ``every_seconds``."""
        return time.monotonic() - self._last_save >= every_seconds

    def save_state(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Save the training state that follows ``step`` finished steps."""
        save_tensors(self._state_file, tensors, {"step": step})
        self._last_save = time.monotonic()

    def load_state(self) -> tuple[dict[str, torch.Tensor], int]:
        """The last saved state and its step, or no tensors and step 0; later metrics are cut off."""
        tensors: dict[str, torch.Tensor] = {}
        step = 0
        if self._state_file.exists():
            tensors, description = load_tensors(self._state_file, "training state")
            step = int(description["step"])
        kept = [line for line in self.metrics() if line["step"] <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        return tensors, step

    def drop_state(self) -> None:
        """Remove the training state of a run that has written its model."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    @property
    def _state_file(self) -> Path:
        return self.path / "checkpoints" / "last" / "state.safetensors"


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # a kill in mid-write leaves at most one broken line, the last
            break
    return lines


def _refuse_foreign(path: Path) -> None:
    # --overwrite deletes: it must never delete a directory that no run wrote.
    if not (path / "config.json").is_file() or not (path / "provenance.json").is_file():
        raise UserError("--overwrite deletes only a run directory", path, "choose another path or empty it yourself")


def _compare(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        shown = ", ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in differing[:3])
        raise UserError(
            f"the run at {path} has other settings", shown, "resume with the same ones, or start anew with --overwrite"
        )
