"""Checkpoints: they come back to the byte, they say what they are, and whatever is not one is refused in a sentence."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from distilhash import checkpoint
from distilhash import files as artefact
from distilhash.checkpoint import load_hasher, load_student, load_tensors, save_model, save_tensors
from distilhash.config import InputConfig
from distilhash.errors import DistilhashError
from distilhash.models import create_hasher, create_student

INPUT = InputConfig(size=32, crop_mode="pad", margin=0.1)
Usage = namedtuple("Usage", "total used free")


def student(name="v1"):
    torch.manual_seed(3)
    return create_student(name, size=32, stem="small", input=INPUT)


def describe(network, **more):
    return {"kind": "student", "architecture": network.architecture, "images": "0123", **more}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A student's and a hasher's model directory inside run directories, and the networks themselves."""
    root = tmp_path_factory.mktemp("saved")
    backbone, hasher = student(), create_hasher(student("v2"), num_bits=12)
    save_model(root / "distill" / "model", backbone, describe(backbone, settings={"epochs": 3}))
    save_model(root / "hash" / "model", hasher, describe(hasher.backbone, kind="hasher", bits=12))
    return root, backbone, hasher


@pytest.mark.parametrize("place", ["", "model", "model/model.safetensors"])
def test_a_student_comes_back_from_every_place_that_holds_it(saved, place):
    root, backbone, _ = saved
    loaded, description = load_student(root / "distill" / place)
    assert not loaded.training
    assert loaded.pretrained and not backbone.pretrained
    assert (loaded.name, loaded.input, loaded.architecture) == ("v1", INPUT, backbone.architecture)
    assert description == describe(backbone, settings={"epochs": 3})
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("place", ["", "model", "model/model.safetensors"])
def test_a_hasher_comes_back_with_its_outputs(saved, place):
    root, _, hasher = saved
    loaded, description = load_hasher(str(root / "hash" / place))
    assert (loaded.num_bits, description["bits"], loaded.backbone.name) == (12, 12, "v2")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded(images), hasher.eval()(images))


def test_the_weights_alone_are_enough_and_people_can_read_the_rest(saved, tmp_path):
    root, backbone, _ = saved
    model = root / "distill" / "model"
    alone = tmp_path / "anything.safetensors"
    alone.write_bytes((model / "model.safetensors").read_bytes())
    assert load_student(alone)[1] == json.loads((model / "config.json").read_text()) == describe(
        backbone, settings={"epochs": 3}
    )  # fmt: skip
    assert "load_student" in (model / "README.md").read_text()


def test_equal_networks_are_equal_files_that_others_may_read(saved, tmp_path):
    root, backbone, _ = saved
    expected = (root / "distill" / "model" / "model.safetensors").read_bytes()
    for number in range(8):  # in a random order of two header entries, one in 256 would pass
        save_model(tmp_path / str(number), backbone, describe(backbone, settings={"epochs": 3}))
        assert (tmp_path / str(number) / "model.safetensors").read_bytes() == expected
    (tmp_path / "plain").touch()
    assert (tmp_path / "0" / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_weights_are_the_last_file(tmp_path, monkeypatch):
    """A model.safetensors says that its directory is whole."""
    monkeypatch.setattr(checkpoint, "save_tensors", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_model(tmp_path, student(), describe(student()))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "README.md"}


def test_tensors_in_any_memory_order_come_back(tmp_path):
    kernel = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    tensors = {"kernel": kernel, "slice": torch.arange(10)[::3], "count": torch.tensor(7), "half": torch.ones(3).half()}
    save_tensors(tmp_path / "x.safetensors", tensors, {"step": 5, "name": "é"})
    loaded, description = load_tensors(tmp_path / "x.safetensors", "state")
    assert description == {"step": 5, "name": "é"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_a_student_is_not_taken_for_a_hasher_nor_the_reverse(saved):
    root, *_ = saved
    with pytest.raises(
        DistilhashError, match=r"this checkpoint is not a hasher; got a student at .*; name a hasher\.$"
    ):
        load_hasher(root / "distill")
    with pytest.raises(
        DistilhashError, match=r"this checkpoint is not a student; got a hasher at .*; name a student\.$"
    ):
        load_student(root / "hash")


def test_tensors_of_another_architecture_are_counted_and_named(tmp_path):
    v1, v2 = student("v1"), student("v2")
    save_model(tmp_path, v2, describe(v1))
    with pytest.raises(DistilhashError, match="of another architecture than it says") as error:
        load_student(tmp_path)
    ours, theirs = v1.state_dict(), v2.state_dict()
    differing = sorted(n for n in ours.keys() | theirs.keys() if getattr(ours.get(n), "shape", 0) != theirs[n].shape)
    assert error.value.got == f"{tmp_path}, {len(differing)} tensors differ, first {', '.join(differing[:3])}"


def test_a_missing_and_a_strange_tensor_are_named(tmp_path):
    network = student()
    tensors = dict(network.state_dict())
    tensors["zebra"] = tensors.pop("bn1.bias")
    save_tensors(tmp_path / "x.safetensors", tensors, describe(network))
    with pytest.raises(DistilhashError, match=r"2 tensors differ, first bn1\.bias, zebra;"):
        load_student(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        {"architecture": None},
        {"architecture": "v1"},
        {"architecture": {"kind": "student", "name": "v1"}},
        {"architecture": {"kind": "student", "name": "v1", "size": 32, "stem": "small", "input": {"sizes": 32}}},
        {"architecture": {"kind": "student", "name": "v9", "size": 32, "stem": "small", "input": {"size": 32}}},
        {"architecture": {"kind": "castle"}},
        {"kind": "hasher"},
        {"kind": "hasher", "bits": "many"},
        {"kind": "hasher", "bits": -1},
        {"kind": "hasher", "bits": 10**15},
        {"kind": "hasher", "bits": float("inf")},
    ],
    ids=str,
)
def test_a_damaged_description_is_the_users_to_mend(tmp_path, damage):
    network = student()
    tensors = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    head = {"head.weight": torch.zeros(8, network.feature_dim), "head.bias": torch.zeros(8)}
    tensors = tensors | head if damage.get("kind") else network.state_dict()
    save_tensors(tmp_path / "x.safetensors", dict(tensors), describe(network) | damage)
    with pytest.raises(DistilhashError):
        (load_hasher if damage.get("kind") else load_student)(tmp_path / "x.safetensors")


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_opened(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(
        DistilhashError, match="checkpoint cannot be read: only safetensors files are loaded, never a pickle"
    ):
        load_student(tmp_path)
    torch.save({"weights": Trap(tmp_path / "sprung")}, tmp_path / "model.safetensors")
    with pytest.raises(DistilhashError, match="never a pickle"):
        load_hasher(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("cut", [0, 4, 100, -1], ids=["empty", "no header", "half a header", "one byte short"])
def test_a_truncated_file_is_refused(saved, tmp_path, cut):
    whole = (saved[0] / "distill" / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:cut])
    with pytest.raises(DistilhashError, match=rf"checkpoint cannot be read: .*; got {tmp_path}"):
        load_student(tmp_path)


@pytest.mark.parametrize("metadata", [
    None, {"format": "pt"}, {"distilhash": "{}"}, {"distilhash": '{"format": "9"}'},
    {"distilhash": '{"format": "distilhash/1"}'}, {"distilhash": '{"format": "distilhash/1", "description": []}'},
])  # fmt: skip
def test_the_safetensors_of_others_are_refused(tmp_path, metadata):
    save_file(student().state_dict(), tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(DistilhashError, match=r"^this file is not a distilhash checkpoint; got \S+; "):
        load_student(tmp_path)


@pytest.mark.parametrize("text", ["not JSON", "[]", "[" * 100_000], ids=["text", "list", "deep"])
def test_a_damaged_header_is_refused(tmp_path, text):
    save_file(student().state_dict(), tmp_path / "model.safetensors", metadata={"distilhash": text})
    with pytest.raises(DistilhashError, match="checkpoint cannot be read"):
        load_student(tmp_path)


def test_nothing_there_is_a_sentence(tmp_path):
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            DistilhashError, match=rf"no checkpoint here; got {missing}; name a run directory, its model/"
        ):
            load_hasher(missing)
    with pytest.raises(DistilhashError, match="no training state here"):
        load_tensors(tmp_path / "state.safetensors", "training state")


def no_room(monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: Usage(10, 10, 0))


def full_while_writing(monkeypatch):
    def fsync(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artefact.os, "fsync", fsync)


@pytest.mark.parametrize(
    ("fill", "sentence"),
    [
        (no_room, r"no room for .*x\.safetensors; got 0 MiB free, 4 MiB needed; free some room\.$"),
        (full_while_writing, r"cannot write .*x\.safetensors; got No space left on device; .*nothing was changed\.$"),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fill, sentence):
    save_tensors(tmp_path / "x.safetensors", {"a": torch.arange(3)}, {"step": 1})
    fill(monkeypatch)
    with pytest.raises(DistilhashError, match=sentence):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1 << 20)}, {"step": 2})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    tensors, description = load_tensors(tmp_path / "x.safetensors", "state")
    assert tensors["a"].tolist() == [0, 1, 2]
    assert description == {"step": 1}


def test_the_file_is_plain_safetensors_for_everyone_else(saved):
    root, backbone, _ = saved
    theirs = load_file(root / "distill" / "model" / "model.safetensors")
    assert {name: tuple(t.shape) for name, t in theirs.items()} == {
        name: tuple(t.shape) for name, t in backbone.state_dict().items()
    }
