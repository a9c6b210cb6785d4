"""Any network as a student: of timm, registered, or a function in a file; trained, saved and loaded by its name."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import distilhash
from distilhash import cli, models
from distilhash.checkpoint import load_hasher, load_student, save_model
from distilhash.config import HashConfig, StudentConfig, TeacherConfig
from distilhash.errors import DistilhashError
from distilhash.models import registry, student
from distilhash.training.distill import distill
from distilhash.training.hash import open_backbone, train_hasher
from distilhash.training.run import RunDirectory
from tiny import DISTILL, HASH, SIDE, tiny_images, tiny_teacher

FILE = """
from pathlib import Path
from torch import nn

Path({mark!r}).touch()

def net(size):
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
"""


def mine(size):
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(size * size * 2, 5)
    return nn.Sequential(*layers)


@pytest.fixture(autouse=True)
def names(monkeypatch):
    monkeypatch.setattr(registry, "NETWORKS", known := {})
    monkeypatch.setattr(student, "NETWORKS", known)
    return known


@pytest.mark.parametrize("backbone", [False, True])
def test_a_registered_network_is_trained_saved_and_loaded(tmp_path, names, backbone):
    class Own(models.Backbone):
        def __init__(self, size):
            super().__init__()
            self.net = mine(size)

        def forward(self, images_N3SS):
            return self.net(images_N3SS)

    models.register("mine")(Own if backbone else mine)
    images, config = tiny_images(), StudentConfig(name="mine", size=SIDE)
    run = RunDirectory(tmp_path / "student", {"stage": "distill"})
    distilled = distill(images, np.arange(120), tiny_teacher(), models.new_student(config, 0), DISTILL, run)
    assert distilled.feature_dim == 5
    again = open_backbone(str(tmp_path / "student"), config, TeacherConfig(), HASH)
    assert again.state_dict().keys() == distilled.state_dict().keys() and again.name == "mine" and again.pretrained
    hasher = models.new_hasher(again, HASH)
    train_hasher(images, np.arange(120), hasher, HASH, RunDirectory(tmp_path / "hasher", {"stage": "hash"}))
    loaded, _ = load_hasher(tmp_path / "hasher")
    pixels = torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), hasher(pixels), rtol=0, atol=1e-4)
    assert len(distilhash.Hasher.from_pretrained(tmp_path / "hasher").encode(images.images)) == 120
    names.clear()
    with pytest.raises(DistilhashError, match="'mine'"):
        load_student(tmp_path / "student")


def test_a_checkpoint_runs_no_file_that_the_user_did_not_name(tmp_path, names, monkeypatch):
    mark, file = tmp_path / "it ran", tmp_path / "net.py"
    file.write_text(FILE.format(mark=str(mark)))
    name = f"{file}:net"
    made = models.new_hasher(models.create_student(name, SIDE), HashConfig(bits=8))
    assert made.backbone.feature_dim == 24

    save_model(tmp_path / "model", made, {"kind": "hasher", "architecture": made.backbone.architecture, "bits": 8})
    load_hasher(tmp_path / "model")  # named in this process
    names.clear()
    mark.unlink()
    with pytest.raises(DistilhashError, match=r"net\.py:net"):
        load_hasher(tmp_path / "model")
    assert not mark.exists()
    monkeypatch.setenv("DISTILHASH_NETWORKS", f"other.py:net,{name}")
    assert torch.equal(load_hasher(tmp_path / "model")[0].head.weight, made.head.weight)
    for wrong in (f"{file}:other", f"{tmp_path}/none.py:net", "unknown"):
        with pytest.raises(DistilhashError, match=wrong.rpartition("/")[2].removesuffix(":net")):
            models.create_student(wrong)
    file.write_text("1 / 0")
    names.clear()
    with pytest.raises(DistilhashError, match="ZeroDivisionError"):
        models.create_student(name)


def test_what_gives_no_features_or_takes_no_such_image_is_refused():
    models.register("map")(lambda size: nn.Conv2d(3, 4, 3))
    models.register("wide")(lambda size: nn.Sequential(nn.Flatten(), nn.Linear(7, 3)))
    with pytest.raises(DistilhashError, match=r"\(1, 4, 14, 14\)"):
        models.create_student("map", 16)
    with pytest.raises(DistilhashError, match="16 pixels"):
        models.create_student("wide", 16)


def test_a_timm_student_in_one_flag(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = tiny_images(48, 2)
    for i, pixels in enumerate(images.images):
        place = tmp_path / "photos" / f"class{i % 2}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    words = ["hash", "photos", "--output", "h", "--student", "timm/test_efficientnet", "--student-size", "32",
             "--epochs", "1", "--batch-size", "8", "--bits", "16", "--precision", "float32", "--quiet"]  # fmt: skip
    assert cli.main(words) == 0
    network, description = load_hasher("h")
    assert description["architecture"]["name"] == "timm/test_efficientnet" and network.input.size == 32
    capsys.readouterr()
    assert cli.main(["code", "h", "photos/class0/0.png", "--json"]) == 0
    code = distilhash.Hasher.from_pretrained("h").encode([images.images[0]])
    assert json.loads(capsys.readouterr().out)[0]["code"] == code.tobytes().hex()
    first, second, other = (models.new_student(StudentConfig(name="timm/test_vit", size=32), s) for s in (3, 3, 4))
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert not all(map(torch.equal, first.state_dict().values(), other.state_dict().values()))
    assert not first.pretrained


def test_pretrained_weights_are_asked_for_only_on_request(monkeypatch):
    asked = []

    def network(name, size, *, pretrained, inner=student.timm_network):
        asked.append(pretrained)
        return inner(name, size, pretrained=False)

    monkeypatch.setattr(student, "timm_network", network)
    made = [models.new_student(StudentConfig(name="timm/test_resnet", size=32, initial=initial), 0)
            for initial in ("he", "pretrained")]  # fmt: skip
    assert asked == [False, True] and [each.pretrained for each in made] == asked
    with pytest.raises(DistilhashError, match="v1"):
        models.create_student("v1", initial="pretrained")
