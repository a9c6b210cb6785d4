"""What the tests of the training rooms share: networks of a few thousand weights, and images that they soon learn."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from distilhash.config import DistillConfig, HashConfig, InputConfig, as_dict
from distilhash.data.sources import ArraySource
from distilhash.inference import head_inputs
from distilhash.models import Backbone, Teacher, create_hasher
from distilhash.training.distill import distill
from distilhash.training.hash import check, train_hasher
from distilhash.training.run import RunDirectory

SIDE = 16
INPUT = InputConfig(size=SIDE, crop_mode="pad", margin=0.1)
# 120 images: 24 held out, 3 steps of 32 in each of 3 epochs; every step is saved. In float32, so that runs are equal
# on every machine: which precision is the fastest for so small a network is chance.
DISTILL = DistillConfig(epochs=3, batch_size=32, prototypes=8, precision="float32", checkpoint_seconds=0)
HASH = HashConfig(epochs=3, batch_size=32, bits=16, precision="float32", checkpoint_seconds=0)


def tiny_images(count: int = 120, classes: int = 4, seed: int = 0, source: type[ArraySource] = ArraySource):
    """Smooth colour patterns: a class has one, and every image bends it a little."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    coarse = rng.normal(size=(classes, 4, 4, 3))[labels] + 0.5 * rng.normal(size=(count, 4, 4, 3))
    smooth = np.kron(coarse, np.ones((1, SIDE // 4, SIDE // 4, 1)))
    pixels = np.clip(128 + 50 * smooth, 0, 255).astype(np.uint8)
    return source(pixels, labels, class_names=[f"class {c}" for c in range(classes)])


def tiny_teacher(dim: int = 24, seed: int = 1) -> Teacher:
    """A frozen random network at another size than the student's, its BatchNorm far from the identity."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, dim, 3, 2, 1, bias=False),
        nn.BatchNorm2d(dim), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return Teacher(network, "tiny", dim, InputConfig(size=24, interpolation="bicubic"))


class TinyStudent(Backbone):
    """Two convolutions, so that Muon has a kernel to move; 32 features."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.name, self.input, self.feature_dim = "tiny", INPUT, 32
        self.architecture = {"kind": "tiny", "input": as_dict(INPUT)}
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, bias=False),
            nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip

    def forward(self, images_N3SS):
        return self.layers(images_N3SS)


def tiny_hasher(bits: int = 16, freeze_backbone: bool = False):
    """A hasher on a fresh student, the same at every call."""
    student = TinyStudent()
    torch.manual_seed(2)
    return create_hasher(student, bits, freeze_backbone)


def distil_tiny(path: Path, config: DistillConfig = DISTILL, *, resume: bool = False, images=None, teacher=None):
    """Distil the teacher into a fresh student, in a run directory; return the student."""
    images = images or tiny_images()
    run = RunDirectory(path, {"stage": "distill", "distill": as_dict(config)}, resume=resume)
    return distill(images, np.arange(len(images)), teacher or tiny_teacher(), TinyStudent(), config, run)


def hash_tiny(path: Path, config: HashConfig = HASH, *, resume: bool = False, images=None, **options):
    """Train a fresh hasher in a run directory; return it."""
    images = images or tiny_images()
    run = RunDirectory(path, {"stage": "hash", "hash": as_dict(config)}, resume=resume)
    hasher = tiny_hasher(config.bits, config.freeze_backbone)
    if config.freeze_backbone and "features_ND" not in options:
        check(images, np.arange(len(images)), config)
        options["features_ND"] = head_inputs(images, np.arange(len(images)), hasher.backbone)
    return train_hasher(images, np.arange(len(images)), hasher, config, run, **options)


def losses_of(path: Path) -> list[float]:
    """The mean loss of every epoch that a run recorded."""
    return [line["loss"] for line in RunDirectory.metrics_in(path) if "loss" in line]


class Slow(ArraySource):
    """Images from a slow disk, so that whoever wants to kill the process has time to."""

    def read(self, indices):
        time.sleep(0.05)
        return super().read(indices)


def both_stages(path: Path) -> None:
    """The work of a process of its own, for tests to kill: both stages, each continued where it was."""
    torch.set_num_threads(1)
    distil_tiny(path / "distill", resume=True, images=tiny_images(source=Slow))
    hash_tiny(path / "hash", resume=True, images=tiny_images(source=Slow))
