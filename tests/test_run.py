"""Run directories: what is refused, what is continued, what is deleted, and what a kill may leave behind."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from distilhash.errors import DistilhashError
from distilhash.training import run as run_module
from distilhash.training.run import RunDirectory

SETTINGS = {"stage": "distill", "distill": {"epochs": 8, "loss": "raw", "seed": 0}, "split": None}


class Killed(BaseException):
    """Stands for SIGKILL where a test needs it at one exact place."""


def open_run(path, settings=SETTINGS, **options):
    return RunDirectory(path, settings, **options)


def files(path):
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_a_fresh_run_describes_itself(tmp_path):
    run = open_run(tmp_path / "deep" / "run")
    assert json.loads((run.path / "config.json").read_text()) == SETTINGS
    assert json.loads((run.path / "provenance.json").read_text())["versions"]["numpy"] == np.__version__
    assert files(run.path) == {"config.json", "provenance.json"}
    assert not run.finished


def test_a_run_that_exists_is_refused_by_name_of_both_ways_out(tmp_path):
    open_run(tmp_path / "run")
    with pytest.raises(DistilhashError, match=r"the run directory exists; got .*run; .*--resume .*--overwrite\.$"):
        open_run(tmp_path / "run")


def test_a_file_is_no_run_directory(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(DistilhashError, match="a run needs a directory; got the file"):
        open_run(tmp_path / "run", overwrite=True)


def test_resume_keeps_the_first_provenance_and_all_files(tmp_path):
    run = open_run(tmp_path / "run")
    run.record(3, loss=1.0)
    before = {name: (run.path / name).read_bytes() for name in files(run.path)}
    open_run(run.path, resume=True)
    assert {name: (run.path / name).read_bytes() for name in files(run.path)} == before


def test_resume_with_other_settings_names_the_differing_ones_alone(tmp_path):
    open_run(tmp_path / "run")
    changed = {**SETTINGS, "distill": {"epochs": 9, "loss": "prototypes", "seed": 0}}
    with pytest.raises(DistilhashError) as error:
        open_run(tmp_path / "run", changed, resume=True)
    assert error.value.got == "distill.epochs was 8 and is 9, distill.loss was 'raw' and is 'prototypes'"
    assert "--overwrite" in error.value.fix
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == SETTINGS


def test_many_differing_settings_are_counted(tmp_path):
    open_run(tmp_path / "run", {name: 0 for name in "abcde"})
    with pytest.raises(DistilhashError, match="a was 0 and is 1, b was 0 and is 1, c was 0 and is 1 and 2 more;"):
        open_run(tmp_path / "run", {name: 1 for name in "abcde"}, resume=True)


def test_resume_where_nothing_is_begins(tmp_path):
    assert open_run(tmp_path / "run", resume=True).load_state() == ({}, 0)


@pytest.mark.parametrize("content", ['{"versions": {"other": "1"}}', "[]", "not JSON", '{"versions": null}', None])
def test_overwrite_never_deletes_what_no_run_wrote(tmp_path, content):
    (tmp_path / "photo.jpg").write_text("precious")
    (tmp_path / "config.json").write_text("{}")
    if content is not None:
        (tmp_path / "provenance.json").write_text(content)
    before = files(tmp_path)
    with pytest.raises(DistilhashError, match="--overwrite deletes only a run directory"):
        open_run(tmp_path, overwrite=True)
    assert files(tmp_path) == before


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_foreign_provenance_file_is_not_taken_for_a_killed_run(tmp_path, options):
    (tmp_path / "provenance.json").write_text('{"painting": "1642"}')
    with pytest.raises(DistilhashError):
        open_run(tmp_path, **options)
    assert (tmp_path / "provenance.json").read_text() == '{"painting": "1642"}'


def test_resume_of_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_text("precious")
    with pytest.raises(DistilhashError, match=r"no run here; got .*config\.json"):
        open_run(tmp_path, resume=True)
    assert files(tmp_path) == {"photo.jpg"}


def test_overwrite_begins_anew(tmp_path):
    run = open_run(tmp_path / "run")
    run.record(3, loss=1.0)
    run.save_state({"x": torch.ones(2)}, 3)
    (run.path / "teacher_features").mkdir()
    (run.path / "teacher_features" / "cache.json").write_text("{}")
    run = open_run(tmp_path / "run", {**SETTINGS, "split": "other"}, overwrite=True)
    assert files(run.path) == {"config.json", "provenance.json"}
    assert json.loads((run.path / "config.json").read_text())["split"] == "other"


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("written", [0, 1], ids=["nothing yet", "provenance alone"])
def test_a_kill_before_the_run_had_begun_is_no_hindrance(tmp_path, monkeypatch, written, options):
    real, calls = run_module.write_json, []

    def write_json(path, data):
        if len(calls) == written:
            (path.parent / f".{path.name}.123.456.tmp").write_text('{"half')
            raise Killed
        calls.append(path)
        real(path, data)

    monkeypatch.setattr(run_module, "write_json", write_json)
    (tmp_path / "run").mkdir()
    with pytest.raises(Killed):
        open_run(tmp_path / "run")
    monkeypatch.undo()
    assert any(".tmp" in name for name in files(tmp_path / "run"))
    run = open_run(tmp_path / "run", {**SETTINGS, "split": "other"}, **options)
    assert files(run.path) == {"config.json", "provenance.json"}
    assert json.loads((run.path / "config.json").read_text())["split"] == "other"


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_a_kill_while_overwriting_leaves_no_mixture(tmp_path, monkeypatch, options):
    run = open_run(tmp_path / "run")
    run.save_state({"x": torch.ones(2)}, 3)
    (run.path / "teacher_features").mkdir()

    def rmtree(path):
        raise Killed

    monkeypatch.setattr(run_module.shutil, "rmtree", rmtree)
    with pytest.raises(Killed):
        open_run(tmp_path / "run", overwrite=True)
    monkeypatch.undo()
    run = open_run(tmp_path / "run", **options)
    assert files(run.path) == {"config.json", "provenance.json"}
    assert run.load_state() == ({}, 0)


def test_remains_of_killed_writes_are_swept_and_hidden_files_kept(tmp_path):
    run = open_run(tmp_path / "run")
    run.save_state({"x": torch.ones(2)}, 3)
    (run.path / "checkpoints" / "last" / ".state.safetensors.123.456.tmp").write_bytes(b"half")
    (run.path / ".mine").write_text("kept")
    run = open_run(tmp_path / "run", resume=True)
    assert files(run.path) == {"config.json", "provenance.json", "checkpoints/last/state.safetensors", ".mine"}
    assert run.load_state()[1] == 3


def test_metrics_after_the_state_are_cut_off_with_a_broken_last_line(tmp_path):
    run = open_run(tmp_path / "run")
    for step in (0, 4, 8):
        run.record(step, loss=step / 10)
    run.save_state({"x": torch.arange(3)}, 4)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    tensors, step = open_run(tmp_path / "run", resume=True).load_state()
    assert step == 4
    assert tensors["x"].tolist() == [0, 1, 2]
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 0, "loss": 0.0}\n{"step": 4, "loss": 0.4}\n'


def test_without_a_state_no_metrics_are_kept(tmp_path):
    run = open_run(tmp_path / "run")
    run.record(0, cosine=0.1)  # the loop writes it again
    assert open_run(tmp_path / "run", resume=True).load_state() == ({}, 0)
    assert RunDirectory.metrics_in(run.path) == []


def test_a_finished_run_says_so_and_drops_the_state_that_a_kill_left(tmp_path):
    run = open_run(tmp_path / "run")
    run.save_state({"x": torch.ones(2)}, 3)
    (run.path / "model").mkdir()
    (run.path / "model" / "model.safetensors").write_bytes(b"weights")
    run = open_run(tmp_path / "run", resume=True)
    assert run.finished
    assert not (run.path / "checkpoints").exists()


def test_a_state_that_is_no_state_is_a_sentence(tmp_path):
    run = open_run(tmp_path / "run")
    run.save_state({"x": torch.ones(2)}, 3)
    (run.path / "checkpoints" / "last" / "state.safetensors").write_bytes(b"\x80\x04garbage")
    with pytest.raises(DistilhashError, match="training state cannot be read"):
        run.load_state()


def test_a_full_disk_stops_a_run_with_a_sentence(tmp_path, monkeypatch):
    run = open_run(tmp_path / "run")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(
        DistilhashError, match=r"cannot write .*metrics\.jsonl; got No space left on device; .*--resume\.$"
    ):
        run.record(1, loss=0.0)


def test_lines_go_to_the_logger_and_to_a_file(tmp_path, caplog):
    caplog.set_level("INFO", "distilhash")
    open_run(tmp_path / "run").log("epoch 1")
    open_run(tmp_path / "run", resume=True).log("epoch 2")
    assert [record.getMessage() for record in caplog.records] == ["epoch 1", "epoch 2"]
    assert (tmp_path / "run" / "train.log").read_text() == "epoch 1\nepoch 2\n"


@pytest.mark.parametrize("late", [False, True])
def test_a_run_that_a_mistake_ended_at_once_is_taken_back(tmp_path, late):
    with pytest.raises(DistilhashError), open_run(tmp_path / "run") as run:
        run.log("3 images are left out")
        if late:
            run.record(0, cosine=0.1)
        raise DistilhashError("no such thing")
    assert (tmp_path / "run").exists() is late


def test_a_run_that_ends_otherwise_is_kept(tmp_path):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "run"):
        raise ZeroDivisionError
    with open_run(tmp_path / "run", resume=True) as run:
        assert run.path.exists()
    assert run.path.exists()
