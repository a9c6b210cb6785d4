"""The choice of a device; and both loops on a GPU of tensors that know their device and hold no numbers."""

from __future__ import annotations

import copy
import dataclasses
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from distilhash import cli, device, encoding, precision
from distilhash.checkpoint import load_tensors, save_model
from distilhash.codes import CodeTable
from distilhash.data.pipeline import through
from distilhash.data.preprocess import Preprocess
from distilhash.device import VARIABLE, choose, current
from distilhash.errors import UserError
from distilhash.models import create_hasher, create_student
from distilhash.training import distill, hashing, teacher_features
from distilhash.training.optimisers import Optimisers
from distilhash.training.run import RunDirectory
from distilhash.training.teacher_features import compute_teacher_features
from test_resume import Interrupted
from tiny import DISTILL, HASH, distil_tiny, hash_tiny, tiny_hasher, tiny_images, tiny_teacher

GPU = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(device._wanted, "device", None)


def seen(monkeypatch, gpus: int = 0, mps: bool = False) -> None:
    """A machine with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("machine", "name", "expected"),
    [
        ({}, None, "cpu"),
        ({}, "auto", "cpu"),
        ({"gpus": 2}, "auto", "cuda"),
        ({"gpus": 2, "mps": True}, None, "cuda"),
        ({"mps": True}, "auto", "mps"),
        ({"gpus": 2}, "cpu", "cpu"),
        ({"gpus": 2}, "cuda:1", "cuda:1"),
        ({"mps": True}, "mps", "mps"),
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
    ("name", "gpus", "message"),
    [
        (
            "cuda",
            0,
            'PyTorch does not see this device here; got cuda where there are none of that kind; choose "auto".',
        ),
        (
            "cuda:2",
            2,
            'PyTorch does not see this device here; got cuda:2 where there are 2 of that kind; choose "auto".',
        ),
        ("mps", 1, 'PyTorch does not see this device here; got mps where there are none of that kind; choose "auto".'),
        ("tpu", 1, "unknown device; got 'tpu'; choose one of: auto, cpu, cuda, cuda:N, mps."),
        ("cuda:-1", 1, "unknown device; got 'cuda:-1'; choose one of: auto, cpu, cuda, cuda:N, mps."),
        ("cuda\n", 1, "unknown device; got 'cuda\\n'; choose one of: auto, cpu, cuda, cuda:N, mps."),
    ],
    ids=repr,
)
def test_a_device_that_is_not_there_is_refused_in_one_sentence(monkeypatch, name, gpus, message):
    seen(monkeypatch, gpus=gpus)
    choose(name)
    with pytest.raises(UserError) as refused:
        current()
    assert str(refused.value) == message
    for check in (
        lambda: distill.check(DISTILL, 120),
        lambda: hashing.check(tiny_images(), 120, HASH),
    ):  # before a directory is made, or deleted
        with pytest.raises(UserError, match=r"device"):
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
    assert said.startswith("distilhash: PyTorch does not see this device here; got cuda"), said
    assert said.count("\n") == 1
    assert not (tmp_path / "codes.safetensors").exists()
    assert cli.main([*words, "--device", "cpu"]) == 0
    assert CodeTable.load(tmp_path / "codes.safetensors").provenance["device"] == "cpu"
    monkeypatch.setattr("distilhash.exported.is_exported", lambda path: True)
    assert cli.main([*words, "--device", "cpu"]) == 2
    assert "an exported hasher runs on the processor; got --device cpu; leave it out." in capsys.readouterr().err


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_is_asked_whether_it_has_bfloat16(monkeypatch, supported):
    seen(monkeypatch, gpus=1)
    asked = []

    def is_bf16_supported(including_emulation=True):
        asked.append(including_emulation)
        return supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert precision.usable("bfloat16") == ("bfloat16" if supported else "float32")
    assert asked == [False]


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


def moved(module: nn.Module, *device: torch.device, memory_format=torch.preserve_format) -> nn.Module:
    """What nn.Module.to does, for fake tensors, too, which cannot be swapped in place."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                order = memory_format if tensor is not None and tensor.ndim == 4 else torch.preserve_format
                if isinstance(tensor, nn.Parameter):
                    made = tensor.detach().to(*device, memory_format=order)
                    tensors[name] = nn.Parameter(made, tensor.requires_grad)
                elif tensor is not None:
                    tensors[name] = tensor.to(*device, memory_format=order)
    return module


def copied(module: nn.Module) -> nn.Module:
    """What copy.deepcopy does, but that tensors are shared; ``moved`` then replaces them in the copy alone."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]})


class Gpu:
    """A GPU of fake tensors: they have shapes and devices, and refuse to meet a tensor of another device.

    What would need numbers is stood in for: reading one, gradients (all zero), the files that are written.
    """

    def __init__(self, monkeypatch) -> None:
        self.losses: list[torch.device] = []
        self.states: list[dict[str, torch.Tensor]] = []
        self.saved: list[tuple[nn.Module, dict]] = []
        self.optimisers: list[Optimisers] = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        choose("cuda:0")
        monkeypatch.setattr(nn.Module, "to", moved)
        monkeypatch.setattr(device, "copy", SimpleNamespace(deepcopy=copied))
        for name in ("item", "numpy", "pin_memory", "backward"):
            monkeypatch.setattr(torch.Tensor, name, getattr(self, name)())
        for module in (distill, hashing):
            monkeypatch.setattr(module, "prefetch", lambda load, keys, **options: map(load, keys))
            monkeypatch.setattr(module, "save_model", lambda path, *saved: self.saved.append(saved))
            monkeypatch.setattr(module, "Optimisers", self.noted)
        for module in (encoding, teacher_features):
            monkeypatch.setattr(module, "through", lambda load, work, keys, shared: map(work, map(load, keys)))
            monkeypatch.setattr(module, "folded", lambda backbone, **options: backbone)
        real = Preprocess.__call__
        monkeypatch.setattr(Preprocess, "__call__", lambda *arguments: pixels_of(real, *arguments))
        monkeypatch.setattr(RunDirectory, "save_state", lambda run, tensors, step: self.states.append(tensors))

    def noted(self, *arguments, **options) -> Optimisers:
        self.optimisers.append(Optimisers(*arguments, **options))
        return self.optimisers[-1]

    @staticmethod
    def item():
        return lambda tensor: 0.5

    @staticmethod
    def numpy():
        def numpy(tensor):
            assert tensor.device.type == "cpu"
            return np.zeros(tuple(tensor.shape), np.uint8 if tensor.dtype == torch.uint8 else np.float32)

        return numpy

    @staticmethod
    def pin_memory():
        return lambda tensor: tensor

    def backward(self):
        def backward(loss):
            self.losses.append(loss.device)
            for member in self.optimisers[-1].members:
                for group in member.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = torch.zeros_like(parameter)

        return backward

    def check(self, steps: int) -> None:
        """Every loss, weight and moment is on the GPU."""
        assert self.losses == [GPU] * steps
        assert len(self.states) == steps
        fused = any(member.defaults.get("fused") for member in self.optimisers[-1].members)
        for state in self.states:
            left = {name for name, value in state.items() if value.device != GPU} - {"progress"}
            assert all(name.endswith(".step") and not fused for name in left), left  # PyTorch keeps counts itself
        (module, description), *_ = self.saved
        assert description["device"] == "cuda"
        trained = module.head if getattr(module, "freeze_backbone", False) else module
        assert all(tensor.device == GPU for tensor in trained.state_dict().values())


def pixels_of(function, *arguments) -> torch.Tensor:
    """A fake tensor like the real one that this function makes of NumPy's memory."""
    with unset_fake_temporarily():
        real = function(*arguments)
    return torch.empty_strided(real.shape, real.stride())


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


def cached(images, indices, *arguments, views=1, **options):
    """Features of a teacher, as their cache gives them."""
    return np.random.default_rng(0).normal(size=(views, len(indices), 24)).astype(np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"views": 2},
        {"precision": "bfloat16"},
        {"optimiser": "published", "loss": "raw", "mode": "online"},
        {"optimiser": "adamw", "loss": "standardised"},
    ],
    ids=str,
)
def test_distillation_leaves_no_tensor_behind(tmp_path, monkeypatch, gpu, changes):
    monkeypatch.setattr(distill, "compute_teacher_features", cached)
    distil_tiny(tmp_path / "run", dataclasses.replace(DISTILL, **changes))
    gpu.check(9)


@pytest.mark.parametrize(
    "changes", [{}, {"optimiser": "published", "framework": "dch"}, {"optimiser": "adamw", "freeze_backbone": True}],
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


@pytest.mark.parametrize("optimiser", ["muon", "published"])
@pytest.mark.parametrize("stage", [distil_tiny, hash_tiny])
def test_a_state_from_the_processor_goes_on_on_the_gpu(tmp_path, monkeypatch, gpu, stage, optimiser):
    monkeypatch.setattr(distill, "compute_teacher_features", cached)
    config = dataclasses.replace(DISTILL if stage is distil_tiny else HASH, optimiser=optimiser)
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
