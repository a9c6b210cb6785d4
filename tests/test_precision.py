"""The choice of an arithmetic: made once, written down, and near enough to float32 where it is bfloat16."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from distilhash import device
from distilhash.checkpoint import load_hasher, save_model
from distilhash.device import arithmetic, fastest_precision, settled_precision
from distilhash.errors import DistilhashError
from distilhash.files import write_json
from distilhash.inference import outputs
from distilhash.models import create_hasher, create_student
from distilhash.training import distill, teacher_features
from distilhash.training import hash as hashing
from distilhash.training.teacher_features import compute_teacher_features
from test_resume import Interrupted, content, interrupt
from tiny import DISTILL, HASH, INPUT, TinyStudent, distil_tiny, hash_tiny, losses_of, tiny_images, tiny_teacher

SHAPE = (4, 3, 16, 16)


def stopwatch(monkeypatch, float32: float, bfloat16: float) -> None:
    """A processor that has bfloat16 and takes so many seconds for a pass."""
    seconds = {"float32": float32, "bfloat16": bfloat16}
    monkeypatch.setattr(device, "native_bfloat16", lambda: True)
    monkeypatch.setattr(device, "_seconds", lambda network, images, name: seconds[name])


@pytest.mark.parametrize(("bfloat16", "expected"), [(0.4, "bfloat16"), (0.9, "float32"), (5.0, "float32")])
def test_bfloat16_is_chosen_where_it_is_clearly_faster(monkeypatch, bfloat16, expected):
    stopwatch(monkeypatch, 1.0, bfloat16)
    assert fastest_precision(TinyStudent(), SHAPE) == expected


def test_nothing_is_timed_where_the_processor_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr(device, "native_bfloat16", lambda: False)
    monkeypatch.setattr(device, "_seconds", None)
    assert fastest_precision(TinyStudent(), SHAPE) == "float32"


@pytest.mark.parametrize("training", [True, False])
def test_timing_leaves_the_network_and_the_generator_as_they_were(monkeypatch, training):
    monkeypatch.setattr(device, "native_bfloat16", lambda: True)
    network = TinyStudent().train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    assert fastest_precision(network, SHAPE) in ("float32", "bfloat16")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_choice_is_made_once(monkeypatch, tmp_path):
    file = tmp_path / "precision.json"
    stopwatch(monkeypatch, 1.0, 0.4)
    assert settled_precision("float32", file, TinyStudent(), SHAPE) == "float32"
    assert not file.exists()
    assert settled_precision("auto", file, TinyStudent(), SHAPE) == "bfloat16"
    stopwatch(monkeypatch, 1.0, 5.0)
    assert settled_precision("auto", file, TinyStudent(), SHAPE) == "bfloat16"
    write_json(file, {"precision": "float7"})
    with pytest.raises(DistilhashError, match="does not name a precision"):
        settled_precision("auto", file, TinyStudent(), SHAPE)


def test_only_products_are_rounded():
    network = TinyStudent().train()
    with arithmetic("bfloat16"):
        outputs = network(torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)))
    outputs.float().square().sum().backward()
    assert all(tensor.dtype == torch.float32 for tensor in network.state_dict().values() if tensor.is_floating_point())
    assert all(parameter.grad.dtype == torch.float32 for parameter in network.parameters())


@pytest.mark.parametrize(("train", "config"), [(distil_tiny, DISTILL), (hash_tiny, HASH)], ids=["distil", "hash"])
def test_training_in_bfloat16_follows_training_in_float32(tmp_path, train, config):
    """Measured over nine steps: the losses of an epoch differ by less than 1 in 100."""
    for name in ("float32", "bfloat16"):
        train(tmp_path / name, dataclasses.replace(config, precision=name))
    exact, rounded = losses_of(tmp_path / "float32"), losses_of(tmp_path / "bfloat16")
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize(
    ("train", "config", "module"), [(distil_tiny, DISTILL, distill), (hash_tiny, HASH, hashing)], ids=["distil", "hash"]
)
def test_a_resumed_run_goes_on_in_the_precision_it_began_in(tmp_path, monkeypatch, train, config, module):
    config = dataclasses.replace(config, precision="auto")
    stopwatch(monkeypatch, 1.0, 0.4)
    train(tmp_path / "whole", config)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, "step", 4, module)
        train(tmp_path / "run", config)
    stopwatch(monkeypatch, 1.0, 5.0)  # another machine
    train(tmp_path / "run", config, resume=True)
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["precision"] == "bfloat16"


def compute(directory, **options):
    return compute_teacher_features(
        tiny_images(40), np.arange(40), tiny_teacher(), directory, crop_mode=INPUT, **options
    )


def test_the_teachers_features_in_bfloat16_are_near_those_in_float32(tmp_path):
    exact, rounded = (compute(tmp_path / name, precision=name)[0] for name in ("float32", "bfloat16"))
    assert not np.array_equal(exact, rounded)
    cosine = (exact * rounded).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosine.min() > 0.999


def test_a_cache_is_of_one_precision(tmp_path, monkeypatch):
    stopwatch(monkeypatch, 1.0, 0.4)
    features = compute(tmp_path / "cache", precision="auto")
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["precision"] == "bfloat16"
    stopwatch(monkeypatch, 1.0, 5.0)
    assert np.array_equal(compute(tmp_path / "cache", precision="auto"), features)
    assert np.array_equal(compute(tmp_path / "cache", precision="bfloat16"), features)
    with pytest.raises(DistilhashError, match="or another precision"):
        compute(tmp_path / "cache", precision="float32")


def test_an_interrupted_pass_goes_on_in_its_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_features, "BATCH", 16)
    monkeypatch.setattr(teacher_features, "FLUSH_SECONDS", 0.0)
    stopwatch(monkeypatch, 1.0, 0.4)
    whole = compute(tmp_path / "whole", precision="auto")
    real, writes = teacher_features._write_progress, []

    def stop_at_the_third(*arguments):
        writes.append(1)
        if len(writes) == 3:  # laid out, one batch; the second batch is not committed
            raise Interrupted
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(teacher_features, "_write_progress", stop_at_the_third)
        compute(tmp_path / "cache", precision="auto")
    stopwatch(monkeypatch, 1.0, 5.0)
    assert np.array_equal(compute(tmp_path / "cache", precision="auto"), whole)


def test_codes_in_bfloat16_are_near_those_in_float32(monkeypatch):
    """Encoded as it was trained; a bit may differ only where its output is near zero."""
    monkeypatch.setattr(device, "native_bfloat16", lambda: True)
    images, indices = tiny_images(60), np.arange(60)
    torch.manual_seed(0)
    hasher = create_hasher(TinyStudent(), 32).eval()
    exact = np.concatenate(list(outputs(images, indices, hasher)))
    hasher.precision = "bfloat16"
    rounded = np.concatenate(list(outputs(images, indices, hasher)))
    assert not np.array_equal(exact, rounded)
    assert np.abs(exact - rounded).max() < 0.02 * np.abs(exact).max()
    assert np.array_equal(exact, np.concatenate(list(outputs(images, indices, hasher, precision="float32"))))
    monkeypatch.setattr(device, "native_bfloat16", lambda: False)
    assert np.array_equal(exact, np.concatenate(list(outputs(images, indices, hasher)))), "never emulated"


def test_a_hasher_remembers_what_it_was_trained_in(tmp_path):
    student = create_student("v1", size=32, stem="small")
    description = {"kind": "hasher", "architecture": student.architecture, "bits": 8, "precision": "bfloat16"}
    save_model(tmp_path / "model", create_hasher(student, 8), description)
    assert load_hasher(tmp_path)[0].precision == "bfloat16"
