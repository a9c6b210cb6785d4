"""Without a network or with a full disk a command says what to do, and nothing that was there is lost."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest

from distilhash import cli
from mistakes import COMMANDS, refused


def unreachable(*_: object, **__: object) -> None:
    raise URLError(OSError(errno.ENETUNREACH, "Network is unreachable"))


@pytest.mark.parametrize(
    ("teacher", "download"),
    [
        ("torchvision/resnet50", "torchvision.models._api.load_state_dict_from_url"),
        ("timm/mobilenetv3_small_050", "timm.models._builder.load_state_dict_from_hf"),
    ],
)
def test_no_network_for_a_teacher(teacher, download, here, monkeypatch, capsys):
    monkeypatch.setattr(download, unreachable)
    said = refused(capsys, *COMMANDS["distill"], "--teacher", teacher)
    assert said.startswith(f"the weights of {teacher} could not be downloaded; got URLError: ")
    assert "Network is unreachable" in said
    assert said.endswith("; connect to the network once, or pass --teacher-weights FILE (weights=... in Python).")


@pytest.mark.parametrize("verb", ["distill", "hash", "demo"])
def test_no_network_for_cifar10(verb, here, monkeypatch, capsys):
    monkeypatch.setenv("DISTILHASH_CACHE", str(here / "cache"))
    (here / "cache" / "cifar10").mkdir(parents=True)
    monkeypatch.delenv("DISTILHASH_CIFAR10", raising=False)
    monkeypatch.setattr("distilhash.data.cifar10.urllib.request.urlopen", unreachable)
    words = COMMANDS[verb] if verb == "demo" else (verb, "cifar10", *COMMANDS[verb][2:])
    said = refused(capsys, *words)
    for part in ("cifar-10-binary.tar.gz", "Network is unreachable", "DISTILHASH_CIFAR10", str(here / "cache/cifar10")):
        assert part in said


def no_room(*_: object) -> object:
    return shutil._ntuple_diskusage(total=1 << 40, used=1 << 40, free=1 << 10)


def test_a_full_disk_for_the_feature_cache(here, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", no_room)
    said = refused(capsys, *COMMANDS["distill"])
    assert all(fact in said for fact in ("run/teacher_features", "1 MiB", "No space left on device", "--features"))


def test_a_full_disk_for_checkpoints_loses_no_step(here, monkeypatch, capsys):
    """The disk fills after the first saved state; with room again the run goes on from there."""
    words = [*COMMANDS["hash"], "--batch-size", "22", "--checkpoint-seconds", "0"]
    real, calls = shutil.disk_usage, []

    def filling(path: object) -> object:
        calls.append(path)
        return real(path) if len(calls) <= 2 else no_room()

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", filling)
        assert cli.main(words) == 2
    out, err = capsys.readouterr()
    state = Path("run/checkpoints/last/state.safetensors")
    assert out == ""
    assert err.startswith(f"distilhash: no room for {state}; got 0 MiB free, ") and err.count("\n") == 1
    assert err.endswith(" MiB needed; free some room.\n")
    assert state.is_file() and not list(here.rglob("*.tmp"))

    assert cli.main([*words, "--resume"]) == 0
    assert "goes on from step 2 of 3" in Path("run/train.log").read_text()
    assert cli.main([*words, "--output", "whole"]) == 0
    assert Path("run/model/model.safetensors").read_bytes() == Path("whole/model/model.safetensors").read_bytes()


def test_a_full_disk_for_a_code_table_keeps_the_old_one(here, monkeypatch, capsys):
    (here / "codes").write_text("an older table")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("distilhash.files.os.fsync", full)
    assert cli.main(["encode", "hasher", "photos", "--output", "codes"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write codes; got No space left on device" in last
    assert (here / "codes").read_text() == "an older table"
