"""The teacher's feature cache: right, resumable to the byte, and never of something else than it seems."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections import namedtuple

import numpy as np
import pytest
import torch

from distilhash.config import InputConfig
from distilhash.data.sources import ArraySource
from distilhash.data.transforms import Preprocess, make_views
from distilhash.errors import DistilhashError
from distilhash.training import teacher_features
from distilhash.training.teacher_features import compute_teacher_features
from tiny import INPUT, tiny_images, tiny_teacher

COUNT, BATCH = 40, 16  # 3 batches a view, the last of 8
Usage = namedtuple("Usage", "total used free")


class Failing(ArraySource):
    """Counts its reads, and fails at one of them."""

    reads, fails_at = 0, None

    def read(self, indices):
        if self.reads == self.fails_at:
            raise InterruptedError("pulled the plug")
        self.reads += 1
        return super().read(indices)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(teacher_features, "BATCH", BATCH)
    monkeypatch.setattr(teacher_features, "FLUSH_SECONDS", 0.0)  # every batch is committed


def chosen():
    return np.random.default_rng(0).permutation(60)[:COUNT]  # in no order: the rows follow the indices


def compute(directory, images=None, teacher=None, **options):
    options = {"views": 2, "seed": 5, "crop_mode": INPUT, "indices": chosen()} | options
    indices = options.pop("indices")
    return compute_teacher_features(images or tiny_images(60), indices, teacher or tiny_teacher(), directory, **options)


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_features_are_the_teachers_own_of_the_images_and_their_views(tmp_path):
    images, teacher = tiny_images(60), tiny_teacher()
    features = compute(tmp_path / "cache", images, teacher, views=3)
    assert (features.shape, features.dtype) == ((3, COUNT, 24), np.float32)
    pixels = Preprocess(dataclasses.replace(teacher.input, crop_mode=INPUT.crop_mode, margin=INPUT.margin))
    for view in range(3):
        views = make_views(chosen(), view, 5) if view else None
        with torch.inference_mode():
            direct = torch.cat(
                [teacher(pixels(images.read([i]), views and views[[n]])) for n, i in enumerate(chosen())]
            )
        np.testing.assert_allclose(features[view], direct.numpy(), atol=1e-4 * direct.abs().max().item(), rtol=0)
    assert np.abs(features[0] - features[1]).max() > 0.05  # another look at the same image


def test_features_are_mapped_read_only_and_found_again(tmp_path):
    images = tiny_images(60, source=Failing)
    first = compute(tmp_path, images)
    assert isinstance(first, np.memmap)
    assert not first.flags.writeable
    assert images.reads == 6
    images.fails_at = 6  # one more read would be a failure
    np.testing.assert_array_equal(compute(tmp_path, images), first)


def test_view_zero_depends_on_no_seed(tmp_path):
    images = tiny_images(60, source=Failing)
    first = compute(tmp_path, images, views=1, seed=1)
    images.fails_at = images.reads
    np.testing.assert_array_equal(compute(tmp_path, images, views=1, seed=2), first)


@pytest.mark.parametrize("batch", [0, 1, 3, 4, 5])
def test_an_interrupted_pass_goes_on_where_it_was_and_ends_in_the_same_bytes(tmp_path, batch):
    compute(tmp_path / "whole")
    images = tiny_images(60, source=Failing)
    images.fails_at = batch
    with pytest.raises(InterruptedError):
        compute(tmp_path / "cut", images)
    rows = COUNT * (batch // 3) + BATCH * (batch % 3)
    assert json.loads((tmp_path / "cut" / "cache.json").read_text())["rows"] == rows
    images.fails_at, images.reads = None, 0
    compute(tmp_path / "cut", images)
    assert images.reads == 6 - batch
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_pass_cut_off_before_it_committed_anything_starts_over(tmp_path):
    compute(tmp_path)
    expected = content(tmp_path)
    (tmp_path / "cache.json").unlink()
    (tmp_path / "features.npy").write_bytes(b"half")
    compute(tmp_path)
    assert content(tmp_path) == expected


def test_a_lost_feature_file_is_computed_again(tmp_path):
    compute(tmp_path)
    expected = content(tmp_path)
    (tmp_path / "features.npy").unlink()
    compute(tmp_path)
    assert content(tmp_path) == expected


OTHERS = {
    "teacher": {"teacher": tiny_teacher(seed=9)},
    "teacher's input": {"teacher": tiny_teacher()},  # its size is changed in the test
    "images": {"images": tiny_images(60, seed=9)},
    "chosen images": {"indices": chosen()[:-1]},
    "order": {"indices": chosen()[::-1]},
    "number of views": {"views": 3},
    "seed of the views": {"seed": 6},
    "crop_mode": {"crop_mode": InputConfig(size=16)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_cache_of_something_else_is_refused_and_kept(tmp_path, name):
    compute(tmp_path)
    before = content(tmp_path)
    options = OTHERS[name]
    if name == "teacher's input":
        options["teacher"].input = dataclasses.replace(options["teacher"].input, size=20)
    with pytest.raises(DistilhashError) as error:
        compute(tmp_path, **options)
    assert "of another teacher, other images or views" in error.value.what
    assert error.value.got == f"{tmp_path}, of teacher tiny"
    assert "--rebuild-features" in error.value.fix
    assert content(tmp_path) == before


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"key": 3}'])
def test_a_damaged_cache_is_refused(tmp_path, text):
    (tmp_path / "cache.json").write_text(text)
    with pytest.raises(DistilhashError):
        compute(tmp_path)


def test_rebuilding_replaces_the_cache_and_nothing_beside_it(tmp_path):
    compute(tmp_path / "fresh", teacher=tiny_teacher(seed=9))
    compute(tmp_path / "cache")
    (tmp_path / "cache" / "photo.jpg").write_text("precious")
    compute(tmp_path / "cache", teacher=tiny_teacher(seed=9), rebuild=True)
    assert content(tmp_path / "cache") == content(tmp_path / "fresh") | {"photo.jpg": b"precious"}


def no_room(monkeypatch):
    monkeypatch.setattr(teacher_features.shutil, "disk_usage", lambda path: Usage(10, 10, 0))


def filled_meanwhile(monkeypatch):
    def posix_fallocate(handle, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(teacher_features.os, "posix_fallocate", posix_fallocate, raising=False)


@pytest.mark.parametrize("fill", [no_room, filled_meanwhile])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch, fill):
    fill(monkeypatch)
    with pytest.raises(DistilhashError, match=r"cache, 1 MiB; got No space left on device; .*--features"):
        compute(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DistilhashError, match="cache, 1 MiB; got Not a directory"):
        compute(tmp_path / "file" / "cache")
