"""A run that was stopped, anywhere and however, ends in the bytes of one that was not."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import time
from pathlib import Path

import pytest

from distilhash.training import distill
from distilhash.training import hash as hashing
from distilhash.training.optim import Optimizers
from distilhash.training.run import RunDirectory
from tiny import DISTILL, HASH, both_stages, distil_tiny, hash_tiny

STEPS = 9  # of either stage
STAGES = {"distil": (distil_tiny, DISTILL, distill), "hash": (hash_tiny, HASH, hashing)}
VARIANTS = [
    ("distil", {"views": 2, "augment": True}),
    ("distil", {"optimizer": "published", "loss": "raw", "mode": "online", "views": 2}),
    ("distil", {"optimizer": "adamw", "loss": "standardised"}),
    ("hash", {}),
    ("hash", {"optimizer": "published", "framework": "dch"}),
    ("hash", {"optimizer": "adamw", "freeze_backbone": True}),
]


class Interrupted(BaseException):
    """Nothing in the software expects it, as nothing expects a kill."""


def content(run: Path) -> dict[str, bytes]:
    """All files of a finished run but those that tell of the time."""
    told = ("train.log", "provenance.json")
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in told}


def interrupt(monkeypatch, place: str, number: int, module) -> None:
    """Stop before the optimizer's step of this number, or at one of the seams behind it."""
    owner, name = {
        "step": (Optimizers, "step"),
        "record": (RunDirectory, "record"),  # of an epoch: before its line is written
        "save": (RunDirectory, "save_state"),  # after the line is written, before the state is saved
        "saved": (RunDirectory, "save_if_due"),  # after the state is saved
        "model": (module, "save_model"),
        "drop": (RunDirectory, "drop_state"),
    }[place]
    real, calls = getattr(owner, name), []

    def call(*arguments, **options):
        calls.append(1)
        if place == "step":
            calls[:] = [1] * (arguments[2] + 1)  # the steps of earlier attempts count, too
        if place != "saved" and len(calls) > number:
            raise Interrupted
        result = real(*arguments, **options)
        if place == "saved" and len(calls) > number:
            raise Interrupted
        return result

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(("stage", "changes"), VARIANTS, ids=str)
def test_a_run_stopped_at_many_steps_ends_in_the_same_bytes(tmp_path, stage, changes):
    work, config, module = STAGES[stage]
    config = dataclasses.replace(config, **changes)
    work(tmp_path / "whole", config)
    for stop in (0, 1, 3, 3, 4, 8, 8):  # 3 ends an epoch; twice the same: nothing was done in between
        with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Interrupted):
            interrupt(monkeypatch, "step", stop, module)
            work(tmp_path / "run", config, resume=True)
    work(tmp_path / "run", config, resume=True)
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert len(RunDirectory.metrics_in(tmp_path / "run")) == 3 + (stage == "distil")


@pytest.mark.parametrize("every", [1, 4, 100], ids=["every step saved", "one in four saved", "none saved"])
@pytest.mark.parametrize("place", ["record", "save", "saved", "model", "drop"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_stopped_at_a_seam_ends_in_the_same_bytes(tmp_path, monkeypatch, stage, place, every):
    work, config, module = STAGES[stage]
    asked = []
    monkeypatch.setattr(RunDirectory, "state_is_due", lambda self, seconds: asked.append(1) or len(asked) % every == 0)
    work(tmp_path / "whole", config)
    stops = 0
    for number in (0, 1, 0, 0):
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, place, 0 if place in ("model", "drop") else number, module)
            asked.clear()
            try:
                work(tmp_path / "run", config, resume=True)
            except Interrupted:
                stops += 1
    asked.clear()
    work(tmp_path / "run", config, resume=True)
    assert stops == 4 or (place == "save" and every > 1), "the test stops less often than it means to"
    assert content(tmp_path / "run") == content(tmp_path / "whole")


def test_a_run_resumes_in_other_processes_that_are_killed(tmp_path, monkeypatch):
    """SIGKILL, three times: while distilling, again while distilling, while hashing."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    state = Path("checkpoints", "last", "state.safetensors")
    # Processes are forked from one that has imported PyTorch already: that takes seconds.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tiny", "torch._dynamo"])
    process = processes.Process(target=both_stages, args=(whole,))  # as fresh as the ones that are killed
    process.start()
    process.join()
    assert process.exitcode == 0
    for mark in (run / "distill" / state, run / "distill" / "metrics.jsonl", run / "hash" / state):
        before = changed(mark)
        process = processes.Process(target=both_stages, args=(run,))
        process.start()
        while changed(mark) == before and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"the process had ended before {mark} changed"
    process = processes.Process(target=both_stages, args=(run,))
    process.start()
    process.join()
    assert process.exitcode == 0
    for stage in ("distill", "hash"):
        assert content(run / stage) == content(whole / stage)


def changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
