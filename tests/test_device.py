"""The choice of a device, where it is named, and where it is written down."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from distilhash import cli, device
from distilhash.checkpoint import load_tensors, save_model
from distilhash.codes import CodeTable
from distilhash.data.prefetch import through
from distilhash.device import VARIABLE, choose, current
from distilhash.errors import DistilhashError
from distilhash.models import create_hasher, create_student
from distilhash.training import distill, teacher_features
from distilhash.training import hash as hashing
from distilhash.training.teacher_features import compute_teacher_features
from test_resume import Interrupted
from tiny import DISTILL, HASH, distil_tiny, hash_tiny, tiny_images, tiny_teacher


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(device._wanted, "device", None)


def seen(monkeypatch, gpus: int = 0, mps: bool = False, current: int = 0) -> None:
    """A machine with so many GPUs, of which PyTorch takes ``current`` where none is named."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("machine", "name", "expected"),
    [
        ({}, None, "cpu"),
        ({}, "auto", "cpu"),
        ({"gpus": 2}, "auto", "cuda:0"),
        ({"gpus": 2, "current": 1}, "cuda", "cuda:1"),
        ({"gpus": 2, "mps": True}, None, "cuda:0"),
        ({"mps": True}, "auto", "mps:0"),
        ({"gpus": 2}, "cpu", "cpu"),
        ({"gpus": 2}, "cuda:1", "cuda:1"),
        ({"mps": True}, "mps", "mps:0"),
    ],
    ids=str,
)
def test_a_device_is_the_one_that_is_named_or_the_fastest_there_is(monkeypatch, machine, name, expected):
    seen(monkeypatch, **machine)
    choose(name)
    assert current() == torch.device(expected)


def test_the_flag_goes_before_the_environment(monkeypatch):
    seen(monkeypatch, gpus=1)
    monkeypatch.setenv(VARIABLE, "cpu")
    assert current().type == "cpu"
    choose("cuda")
    assert current().type == "cuda"
    choose(None)
    assert current().type == "cpu"


@pytest.mark.parametrize(
    ("name", "gpus", "fact"),
    [
        ("cuda", 0, "cuda, 0 of that kind"), ("cuda:2", 2, "cuda:2, 2 of that kind"), ("mps", 1, "mps, 0 of that kind"),
        ("tpu", 1, "'tpu'"), ("cuda:-1", 1, "'cuda:-1'"), ("cuda\n", 1, "'cuda\\n'"),
        ("cuda:1", 1, "cuda:1, 1 of that kind"), ("cuda:01", 2, "'cuda:01'"), ("cuda:\u0661", 2, "'cuda:\u0661'"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_device_that_is_not_there_is_refused(monkeypatch, name, gpus, fact):
    seen(monkeypatch, gpus=gpus)
    choose(name)
    with pytest.raises(DistilhashError) as refused:
        current()
    assert refused.value.got == fact
    for check in (
        lambda: distill.check(DISTILL, tiny_images(), np.arange(120)),
        lambda: hashing.check(tiny_images(), np.arange(120), HASH),
    ):  # before a directory is made, or deleted
        with pytest.raises(DistilhashError, match=r"device"):
            check()


def test_the_command_line_names_a_device(monkeypatch, tmp_path, capsys):
    seen(monkeypatch)
    for number in range(3):
        Image.fromarray(np.full((40, 40, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    student = create_student("v1", size=32, stem="tiny")
    about = {"kind": "hasher", "architecture": student.architecture, "bits": 8}
    save_model(tmp_path / "hasher", create_hasher(student, 8), about)
    words = ["encode", str(tmp_path / "hasher"), str(tmp_path), "--output", str(tmp_path / "codes.safetensors")]
    assert cli.main([*words, "--device", "cuda"]) == 2
    said = capsys.readouterr().err
    assert "cuda, 0 of that kind" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "codes.safetensors").exists()
    assert cli.main([*words, "--device", "cpu"]) == 0
    assert CodeTable.load(tmp_path / "codes.safetensors").provenance["device"] == "cpu"
    monkeypatch.setattr("distilhash.deploy.runtime.is_exported", lambda path: True)
    assert cli.main([*words, "--device", "cpu"]) == 2
    assert "an exported hasher runs on the processor; got --device cpu; leave it out." in capsys.readouterr().err


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_is_asked_whether_it_has_bfloat16(monkeypatch, supported):
    seen(monkeypatch, gpus=2)
    choose("cuda:1")
    asked = []

    @contextlib.contextmanager
    def entered(gpu):
        asked.append(gpu)
        yield

    def is_bf16_supported(including_emulation=True):
        asked.append(including_emulation)
        return supported

    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert device.usable_precision("bfloat16") == ("bfloat16" if supported else "float32")
    assert asked == [torch.device("cuda:1"), False]


@pytest.mark.parametrize(("train", "config", "load"), [(distil_tiny, DISTILL, "student"), (hash_tiny, HASH, "hasher")])
def test_a_checkpoint_names_the_device_and_the_settings_do_not(tmp_path, train, config, load):
    """So that it may go on elsewhere."""
    choose("cpu")
    train(tmp_path / "run", config)
    assert load_tensors(tmp_path / "run" / "model" / "model.safetensors", load)[1]["device"] == "cpu"
    assert "device" not in (tmp_path / "run" / "config.json").read_text()


@pytest.mark.parametrize("batches", [(16, 24), (24, 16), (16, 64)], ids=str)
def test_a_pass_goes_on_with_batches_of_another_size(tmp_path, monkeypatch, batches):
    def compute(place, batch):
        monkeypatch.setattr(teacher_features, "BATCH", batch)
        return compute_teacher_features(tiny_images(40), np.arange(40), tiny_teacher(), place, views=2)

    whole = compute(tmp_path / "whole", 40)
    real, writes = teacher_features._write_progress, []

    def stop_later(*arguments):
        writes.append(arguments[-1])
        real(*arguments)
        if len(writes) == 3:  # laid out, and two batches
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(teacher_features, "FLUSH_SECONDS", 0.0)
        patch.setattr(teacher_features, "_write_progress", stop_later)
        compute(tmp_path / "cache", batches[0])
    assert 0 < writes[-1] < 80
    np.testing.assert_allclose(compute(tmp_path / "cache", batches[1]), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_work_comes_in_order_whoever_does_it(shared):
    workers = set()

    def work(number):
        workers.add(threading.current_thread() is threading.main_thread())
        return number * 10

    assert list(through(lambda number: number + 1, work, range(30), shared=shared)) == [*range(10, 310, 10)]
    assert workers == {shared}
