"""What is fast is what is plain: every shortcut against the slow way it replaces, over whole pieces of work.

The equality of single layers is in test_conv and test_optimizers, that of features in test_folding,
that of cached and online distillation in test_distill. Here the same networks train and encode both ways. Loss curves
are compared in float64: in float32 a difference in the last digit grows some tenfold with every step, whatever its
cause.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distilhash import inference as encoding
from distilhash.config import DistillConfig, InputConfig
from distilhash.data.sources import Subset
from distilhash.data.transforms import Preprocess
from distilhash.models import create_hasher, create_student
from distilhash.models.student import Conv3x3
from distilhash.training.distill import distill
from distilhash.training.optim import NEWTON_SCHULZ, Optimizers
from distilhash.training.run import RunDirectory
from distilhash.training.teacher_features import compute_teacher_features
from tiny import tiny_teacher

STEPS, BATCH = 4, 16


@pytest.fixture
def images(cifar10):
    return Subset(cifar10, np.arange(200))


def student():
    torch.manual_seed(0)
    return create_student("v1", 32, "small", input=InputConfig(size=32, crop_mode="pad", margin=0.1))


def curve(path, monkeypatch, images):
    """The loss of each of the first steps of the real loop."""
    losses = []

    class Noting(Optimizers):
        def step(self, loss, step):
            losses.append(loss.item())
            return super().step(loss, step)

    monkeypatch.setattr("distilhash.training.distill.Optimizers", Noting)
    config = DistillConfig(epochs=1, batch_size=BATCH, prototypes=16, precision="float32", optimizer="muon")
    indices, teacher = np.arange(STEPS * BATCH * 5 // 4), tiny_teacher()
    run = RunDirectory(path, {})
    compute_teacher_features(images, indices, teacher, path / "cache", crop_mode=student().input)
    torch.set_default_dtype(torch.float64)
    try:
        network = student()
        network.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        distill(images, indices, teacher, network, config, run, features=path / "cache")
    finally:
        torch.set_default_dtype(torch.float32)
    return np.array(losses)


def plain_muon(matrices):
    """Newton-Schulz as published: on the wide matrices themselves."""
    x = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT


class Contiguous(Preprocess):
    """Pixels in the order that PyTorch has by default."""

    def __call__(self, *arguments):
        return super().__call__(*arguments).contiguous()


def contiguous(patch):
    patch.setattr("distilhash.training.distill.Preprocess", Contiguous)
    patch.setattr(nn.Module, "to", lambda self, *arguments, **options: self)


PLAIN = {
    "small maps": lambda patch: patch.setattr(Conv3x3, "forward", nn.Conv2d.forward),
    "gram": lambda patch: patch.setattr("distilhash.training.optim.orthonormalize", plain_muon),
    "layout": contiguous,
}


def test_a_loss_curve_is_that_of_the_plain_way(tmp_path, monkeypatch, images):
    fast = curve(tmp_path / "fast", monkeypatch, images)
    assert len(fast) == STEPS
    assert np.ptp(fast) > 0.1  # a curve that stood still would prove nothing
    for shortcut, slow in PLAIN.items():
        with monkeypatch.context() as patch:
            slow(patch)
            plain = curve(tmp_path / shortcut, patch, images)
        np.testing.assert_allclose(fast, plain, rtol=1e-6, err_msg=shortcut)


def test_codes_are_those_of_the_plain_network(monkeypatch, images):
    """Folded, channels-last and with shortcuts; a bit may differ only where its output is zero but for rounding."""
    hasher = create_hasher(student(), 64)
    pixels = Preprocess(hasher.input)(images.read(np.arange(200)))
    hasher.train()
    with torch.no_grad():
        for batch in pixels.split(50):  # statistics that are not 0 and 1
            hasher(batch)
    fast = encoding.encode(images, np.arange(200), hasher).packed
    monkeypatch.setattr(encoding, "folded", lambda backbone, **options: backbone)
    monkeypatch.setattr(Conv3x3, "forward", nn.Conv2d.forward)
    plain = encoding.encode(images, np.arange(200), hasher).packed
    with torch.no_grad():
        outputs = hasher(pixels).numpy()
    bits = np.unpackbits(fast ^ plain, axis=1).astype(bool)
    assert np.abs(outputs[bits]).max(initial=0) < 1e-4 * np.abs(outputs).max()
    assert bits.mean() < 1e-3
    assert len(np.unique(fast, axis=0)) > 150  # and they tell images apart
