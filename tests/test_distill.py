"""Distillation: both modes agree, the student learns, the teacher stays as it was, and no query is ever looked at."""

from __future__ import annotations

import dataclasses
import threading
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from distilhash import api as stages
from distilhash.checkpoint import load_tensors
from distilhash.config import DemoConfig, DistillConfig, HashConfig, StudentConfig
from distilhash.data.folders import FolderSource
from distilhash.data.sources import ArraySource
from distilhash.data.splits import holdout_split
from distilhash.data.transforms import make_views
from distilhash.errors import DistilhashError
from distilhash.experiments import arms, runner
from distilhash.training import distill as module
from distilhash.training import hash as hashing
from distilhash.training.distill import distill, split_validation
from distilhash.training.run import RunDirectory
from tiny import DISTILL, TinyStudent, distil_tiny, losses_of, tiny_images, tiny_teacher


def settings(**changes):
    return dataclasses.replace(DISTILL, **changes)


def records(path):
    return RunDirectory.metrics_in(path)


@pytest.mark.parametrize("loss", ["raw", "standardised", "prototypes"])
def test_online_and_cached_distillation_are_the_same(tmp_path, monkeypatch, loss):
    """A view for each of three epochs, but that the first of a cache is the image itself. Measured: 5e-7."""
    real = module.make_views
    for mode in ("cached", "online"):
        distil_tiny(tmp_path / mode, settings(mode=mode, views=3, loss=loss))
        monkeypatch.setattr(module, "make_views", lambda i, view, seed: real(i, view, seed) if view else None)
    cached, online = records(tmp_path / "cached"), records(tmp_path / "online")
    assert [line.keys() for line in cached] == [line.keys() for line in online]
    for one, other in zip(cached, online, strict=True):
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (name, one["step"])


def test_every_epoch_of_online_distillation_has_views_of_its_own(tmp_path, monkeypatch):
    """With one view in the cache, too; the teacher and the student see the same one, which counters decide."""
    real, shown = module.read_for, []

    def read_for(pipelines, images, chosen, views):
        if views is not None:
            shown.extend(zip(chosen.tolist(), views.flip.tolist(), map(tuple, views.offset), strict=True))
        return real(pipelines, images, chosen, views)

    monkeypatch.setattr(module, "read_for", read_for)
    distil_tiny(tmp_path / "run", settings(mode="online", views=1, seed=3))
    assert len(shown) == 9 * 32
    for number, (index, flip, offset) in enumerate(shown):
        expected = make_views(np.array([index]), number // (3 * 32), 3)
        assert (flip, offset) == (expected.flip[0], tuple(expected.offset[0]))
    shown.clear()
    distil_tiny(tmp_path / "cached", settings(mode="cached", views=1))
    assert not shown


class Watched(nn.Module):
    """Notes in which thread and precision a network runs."""

    seen: ClassVar[list] = []

    def forward(self, images_N3SS):
        self.seen.append((threading.current_thread() is threading.main_thread(), images_N3SS.dtype))
        return images_N3SS


class OneByOne(FolderSource):
    """Refuses to be read as a batch, which could be of large photos."""

    def read(self, indices):
        assert len(indices) == 1
        return super().read(indices)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_online_and_cached_distillation_see_the_same_pixels_of_files(tmp_path, monkeypatch, precision):
    """JPEGs of several sizes. Once the losses were 3% apart, as one mode decoded them at a part of their size."""
    rng = np.random.default_rng(0)
    for number in range(60):
        height, width = rng.integers(30, 400, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{number:02}.jpg")
    images, real = OneByOne(tmp_path), module.make_views
    monkeypatch.setattr(module, "make_views", lambda i, view, seed: real(i, view, seed) if view else None)
    for mode in ("cached", "online"):
        teacher = tiny_teacher()
        teacher.network = nn.Sequential(Watched(), *teacher.network)
        config = settings(mode=mode, views=3, loss="raw", batch_size=16, precision=precision)
        Watched.seen.clear()
        distil_tiny(tmp_path / mode, config, images=images, teacher=teacher)
    wanted = torch.float32 if precision == "float32" else torch.bfloat16
    in_loop = [dtype for main, dtype in Watched.seen if main and dtype == wanted]
    assert len(in_loop) >= 9  # every step, besides folding's own trial
    cached, online = losses_of(tmp_path / "cached"), losses_of(tmp_path / "online")
    assert online == pytest.approx(cached, rel=1e-5 if precision == "float32" else 1e-2)


def test_views_are_other_looks_at_the_images(tmp_path):
    for views in (1, 2):
        distil_tiny(tmp_path / str(views), settings(views=views))
    one, two = losses_of(tmp_path / "1"), losses_of(tmp_path / "2")
    assert one[0] == two[0]  # both begin with the images themselves
    assert abs(one[1] - two[1]) > 1e-4


@pytest.mark.parametrize(
    ("loss", "left", "gained"), [("raw", 0.05, 0.1), ("standardised", 0.5, 0.5), ("prototypes", 0.5, 0.6)]
)
def test_the_loss_falls_and_the_agreement_rises(tmp_path, loss, left, gained):
    distil_tiny(tmp_path / "run", settings(loss=loss, epochs=15, learning_rate=0.02))
    losses, lines = losses_of(tmp_path / "run"), records(tmp_path / "run")
    assert losses[-1] < left * losses[0]
    assert lines[-1]["cosine"] > lines[0]["cosine"] + gained
    assert lines[-1]["overlap_at_10"] > lines[0]["overlap_at_10"] + 0.05


def test_every_epoch_is_recorded_with_its_agreement_after_the_start(tmp_path):
    distil_tiny(tmp_path / "run")
    lines = records(tmp_path / "run")
    assert [(line["step"], line["epoch"], "loss" in line) for line in lines] == [
        (0, 0, False), (3, 1, True), (6, 2, True), (9, 3, True)
    ]  # fmt: skip
    assert all(-1 <= line["cosine"] <= 1 and 0 <= line["overlap_at_10"] <= 1 for line in lines)


def test_agreement_is_a_count_of_shared_neighbours():
    torch.manual_seed(0)
    teacher, student = torch.randn(30, 8), torch.randn(30, 5)
    shared = 0
    for i in range(30):
        near = []
        for features in (teacher, student):
            centred = features.double() - features.double().mean(dim=0)
            cosine = [torch.cosine_similarity(centred[i], centred[j], dim=0).item() for j in range(30)]
            near.append(set(sorted((j for j in range(30) if j != i), key=lambda j: -cosine[j])[:10]))
        shared += len(near[0] & near[1])
    found = module._agreement(student, teacher, teacher, teacher)
    assert found["overlap_at_10"] == pytest.approx(shared / 300)
    assert found["cosine"] == pytest.approx(1)
    assert module._agreement(teacher * 3 + 1, -teacher, teacher, teacher) == {
        "cosine": pytest.approx(-1), "overlap_at_10": pytest.approx(1)
    }  # fmt: skip


@pytest.mark.parametrize(("dim", "projected"), [(32, False), (24, True)])
def test_equal_feature_sizes_need_no_projection_head(tmp_path, monkeypatch, dim, projected):
    monkeypatch.setattr(RunDirectory, "drop_state", lambda self: None)
    distil_tiny(tmp_path / "run", settings(loss="raw"), teacher=tiny_teacher(dim=dim))
    state, _ = load_tensors(tmp_path / "run" / "checkpoints" / "last" / "state.safetensors", "state")
    assert ("projection_head.weight" in state) is projected


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_the_teacher_stays_as_it_was(tmp_path, mode):
    teacher = tiny_teacher()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = distil_tiny(tmp_path / "run", settings(mode=mode, views=2), teacher=teacher)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not torch.equal(student.layers[3].weight, TinyStudent().layers[3].weight)


def test_the_checkpoint_says_what_it_was_made_from(tmp_path):
    images, teacher = tiny_images(), tiny_teacher()
    distil_tiny(tmp_path / "run", images=images, teacher=teacher)
    _, description = load_tensors(tmp_path / "run" / "model" / "model.safetensors", "checkpoint")
    assert description["teacher_fingerprint"] == teacher.fingerprint
    assert description["images"] == images.fingerprint
    assert description["settings"]["epochs"] == 3
    assert description["unlabelled_images"] == 120
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mode": "live"}, r"unknown distill mode; got 'live'; .* cached, online\."),
        ({"loss": "mse"}, r"unknown distillation loss; got 'mse'; choose one of: prototypes, raw, standardised\."),
        ({"optimizer": "sgd"}, r"unknown distill optimizer; got 'sgd'; choose one of: adamw, muon, published\."),
        (
            {"batch_size": 97},
            r"got 120, of which 24 .* with batches of 97;",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_teachers_pass(tmp_path, change, sentence):
    with pytest.raises(DistilhashError, match=sentence):
        distil_tiny(tmp_path / "run", settings(**change))
    assert not (tmp_path / "run" / "teacher_features").exists()


def test_too_few_images_for_a_validation_set_are_refused(tmp_path):
    with pytest.raises(DistilhashError, match="got 54, of which 10 are"):
        distil_tiny(tmp_path / "run", images=tiny_images(54))
    distil_tiny(tmp_path / "enough", settings(epochs=1), images=tiny_images(55))


def test_validation_images_are_not_trained_on_and_every_other_one_may_be():
    indices = np.random.default_rng(0).permutation(500)[:200] + 7
    train, validation = split_validation(indices, 30, seed=1)
    assert (len(train), len(validation)) == (170, 30)
    assert sorted([*train, *validation]) == sorted(indices)
    assert len(split_validation(indices, 500, seed=1)[1]) == 40  # a fifth at most
    assert not np.array_equal(split_validation(indices, 30, seed=2)[1], validation)


def test_the_order_of_the_indices_does_not_shift_the_targets(tmp_path):
    """A teacher that is its own student must agree with itself, however the images are numbered."""
    images, teacher = tiny_images(), tiny_teacher(dim=32)
    student = TinyStudent()
    teacher.network, teacher.input = TinyStudent().eval(), student.input
    order = np.random.default_rng(3).permutation(120)
    config = settings(loss="raw", epochs=1)
    run = RunDirectory(tmp_path / "run", {})
    distill(images, order, teacher, student, config, run)
    assert student.pretrained  # so that hashing spares what it was taught, also where it was not loaded from disk
    assert records(tmp_path / "run")[0] == {
        "step": 0, "epoch": 0, "cosine": pytest.approx(1, abs=1e-3), "overlap_at_10": pytest.approx(1, abs=0.01)
    }  # fmt: skip


class Spy(ArraySource):
    """Notes which images are read, under the name of what is going on."""

    doing = "something else"

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen = {}

    def read(self, indices):
        self.seen.setdefault(self.doing, set()).update(np.asarray(indices).tolist())
        return super().read(indices)


def test_no_query_is_read_before_it_is_encoded(tmp_path, monkeypatch):
    spy = tiny_images(120, source=Spy)
    split = holdout_split(spy.labels, class_names=tuple(spy.class_names))
    query, unlabelled, train = set(split.query), set(split.unlabelled), set(split.train)
    assert len(query) == 12
    monkeypatch.setattr("distilhash.data.loading.open_readable", lambda *arguments, **options: spy)
    monkeypatch.setattr("distilhash.models.open_teacher", lambda config: tiny_teacher())
    student = StudentConfig(size=32, stem="small", crop_mode="pad", margin=0.1)

    spy.doing = "distil"
    config = DistillConfig(epochs=1, batch_size=64, views=2, mode="online", validation_size=20)
    stages.distill("spy", tmp_path / "student", student=student, config=config)
    for backbone, frozen in (("student", False), ("student", True)):
        spy.doing = f"hash {frozen}"
        config = HashConfig(epochs=1, batch_size=64, bits=16, freeze_backbone=frozen)
        stages.hash("spy", tmp_path / spy.doing, tmp_path / backbone, config=config)
    assert spy.seen == {"distil": unlabelled, "hash False": spy.seen["hash False"], "hash True": train}
    assert spy.seen["hash False"] <= train
    spy.doing = "encode"
    stages.encode(tmp_path / "hash True", "spy", tmp_path / "codes.safetensors", part="query")
    assert spy.seen["encode"] == query


def test_the_comparison_trains_on_no_query(tmp_path, monkeypatch):
    spy = tiny_images(360, source=Spy)  # one step of 256
    split = dataclasses.replace(holdout_split(spy.labels), protocol="cifar10")
    monkeypatch.setattr(runner, "open_readable", lambda *arguments, **options: spy)
    monkeypatch.setattr(runner, "split_of", lambda *arguments, **options: split)

    def watched(owner, name, words):
        real = getattr(owner, name)

        def call(*arguments, **options):
            before, spy.doing = spy.doing, words(*arguments)
            try:
                return real(*arguments, **options)
            finally:
                spy.doing = before

        monkeypatch.setattr(owner, name, call)

    trained = []
    watched(arms.distillation, "distill", lambda images, indices, *rest: trained.extend(indices) or "distil")
    watched(hashing, "train_hasher", lambda *arguments: "hash")
    watched(arms, "compute_teacher_features", lambda images, indices, teacher, directory: directory.name)
    config = DemoConfig(teacher_size=32, distill_epochs=1, hash_epochs=1, bits=16)
    runner.run_demo(config, tmp_path / "demo")
    assert set(trained) == set(split.unlabelled)
    assert spy.seen["distil"] <= set(split.unlabelled)
    assert spy.seen["hash"] <= set(split.train)
    assert spy.seen["teacher_features"] == set(split.unlabelled) | set(split.query)  # for the frozen teacher's codes
    assert spy.seen["something else"] >= set(split.query)  # encoding, and the pictures of the report


def test_only_the_student_sees_augmented_views(tmp_path, monkeypatch):
    """The targets are those of the plain views, and every epoch shows a photo anew."""
    seen = []
    real = module.augmented
    monkeypatch.setattr(module, "augmented", lambda *given: seen.append(given[1:]) or real(*given))
    for name, augment in (("plain", False), ("augmented", True)):
        distil_tiny(tmp_path / name, settings(augment=augment, views=2))
    rows = [np.load(tmp_path / name / "teacher_features" / "features.npy") for name in ("plain", "augmented")]
    assert np.array_equal(*rows)
    assert [(epoch, seed) for _, epoch, seed in seen] == [(epoch, 0) for epoch in (0, 1, 2) for _ in range(3)]
    assert losses_of(tmp_path / "plain") != losses_of(tmp_path / "augmented")
