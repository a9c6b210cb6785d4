"""Both loops on a GPU of fake tensors: nothing is left behind on the processor."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distilhash import device
from distilhash import inference as encoding
from distilhash.training import distill, teacher_features
from distilhash.training.run import RunDirectory
from fake_gpu import GPU, Gpu, copied, moved
from tiny import DISTILL, HASH, distil_tiny, hash_tiny, tiny_hasher, tiny_images, tiny_teacher


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setitem(device._wanted, "device", None)


@pytest.fixture
def gpu(monkeypatch):
    made = Gpu(monkeypatch)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield made


def test_tensors_of_two_devices_refuse_each_other_here(gpu):
    network = moved(nn.Conv2d(3, 4, 3), GPU)
    assert network(torch.zeros(1, 3, 8, 8, device=GPU)).device == GPU
    with pytest.raises(RuntimeError, match="device"):
        network(torch.zeros(1, 3, 8, 8))


def test_a_network_on_one_gpu_is_copied_to_the_other(gpu):
    network = moved(nn.Conv2d(3, 4, 3), GPU)
    assert device.on(network, GPU) is network
    other = torch.device("cuda:1")
    assert next(device.on(network, other).parameters()).device == other
    assert next(network.parameters()).device == GPU


def cached(images, indices, *arguments, views=1, **options):
    """Features of a teacher, as their cache gives them."""
    return np.random.default_rng(0).normal(size=(views, len(indices), 24)).astype(np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"views": 2},
        {"precision": "bfloat16"},
        {"optimizer": "published", "loss": "raw", "mode": "online"},
        {"optimizer": "adamw", "loss": "standardised"},
    ],
    ids=str,
)
def test_distillation_leaves_no_tensor_behind(tmp_path, monkeypatch, gpu, changes):
    monkeypatch.setattr(distill, "compute_teacher_features", cached)
    monkeypatch.setattr(distill, "precision_of", lambda directory: "float32")
    distil_tiny(tmp_path / "run", dataclasses.replace(DISTILL, **changes))
    gpu.check(9)


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "published", "framework": "dch"}, {"optimizer": "adamw", "freeze_backbone": True}],
    ids=str,
)  # fmt: skip
def test_hashing_leaves_no_tensor_behind(tmp_path, gpu, changes):
    measured = []

    def measure(hasher):
        measured.append(encoding.encode(tiny_images(), np.arange(40), hasher, precision="float32"))
        return {"map": 0.1}

    hash_tiny(tmp_path / "run", dataclasses.replace(HASH, **changes), measure=measure)
    gpu.check(9)
    assert [len(table.packed) for table in measured] == [40] * 3


@pytest.mark.parametrize("optimizer", ["muon", "published"])
@pytest.mark.parametrize("stage", [distil_tiny, hash_tiny])
def test_a_state_from_the_processor_goes_on_on_the_gpu(tmp_path, monkeypatch, gpu, stage, optimizer):
    monkeypatch.setattr(distill, "compute_teacher_features", cached)
    config = dataclasses.replace(DISTILL if stage is distil_tiny else HASH, optimizer=optimizer)
    stage(tmp_path / "whole", config)
    state = {name: tensor.cpu() for name, tensor in gpu.states[3].items()}  # as a file gives it
    gpu.losses.clear(), gpu.states.clear(), gpu.saved.clear()
    monkeypatch.setattr(RunDirectory, "load_state", lambda run: (dict(state), 4))
    stage(tmp_path / "run", config)
    gpu.check(5)


def test_the_teacher_and_a_hasher_run_on_the_gpu(tmp_path, gpu):
    teacher, hasher = tiny_teacher(), tiny_hasher()
    features = teacher_features.compute_teacher_features(
        tiny_images(), np.arange(120), teacher, tmp_path / "cache", views=2
    )
    assert features.shape == (2, 120, 24)
    assert next(teacher.parameters()).device.type == "cpu"  # the caller's own
    assert encoding.encode(tiny_images(), np.arange(120), hasher).packed.shape == (120, 2)
    assert next(hasher.parameters()).device.type == "cpu"
    on_gpu = moved(copied(hasher), GPU)
    assert len(encoding.encode_features(np.zeros((5, 32), np.float32), tiny_images(), np.arange(5), on_gpu).packed) == 5
