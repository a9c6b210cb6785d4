"""Every preset takes two steps in each of its stages and arms; a tiny demonstration runs from the shell to its page."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from distilhash import api as stages
from distilhash import cli
from distilhash.checkpoint import load_hasher, load_model, load_student
from distilhash.config import DemoConfig, HashConfig, ReproduceConfig, StudentConfig
from distilhash.data.transforms import Preprocess
from distilhash.experiments.presets import demo as demo_preset
from distilhash.experiments.presets import paper_cifar10, paper_nuswide, preset_of
from distilhash.experiments.trials import TrialKey
from distilhash.models import create_student, create_teacher, new_hasher, new_student
from distilhash.training import hash as hashing
from distilhash.training.run import RunDirectory

FAKE = "timm/test_resnet"  # a real network of a few hundred thousand weights
LARGE = ("torchvision/", "timm/")  # teachers that would be downloaded


@pytest.fixture(scope="module")
def photos(cifar10, tmp_path_factory):
    """Two class folders of five images: a query and four for training in each."""
    root = tmp_path_factory.mktemp("photos")
    labels = np.asarray(cifar10.labels)
    for c in range(2):
        (root / str(c)).mkdir()
        for index in np.flatnonzero(labels == c)[:5]:
            Image.fromarray(cifar10.images[index]).save(root / str(c) / f"{index}.png")
    return root


@pytest.fixture
def no_download(tmp_path, monkeypatch):
    """In the place of a large teacher a small one, random and at 64 pixels; a packaged one at 32 pixels."""
    torch.manual_seed(0)
    weights = tmp_path / "fake.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), weights)
    asked = []

    def create(name, *, trainable=False, **_):
        asked.append(name)
        if name.startswith(LARGE):
            return create_teacher(FAKE, weights, 64, trainable=trainable)
        return create_teacher(name, size=32, trainable=trainable)

    monkeypatch.setattr("distilhash.models.teacher.create_teacher", create)
    # Two images are held out here, and agreement is about the nearest of them.
    monkeypatch.setattr("distilhash.training.distill.NEIGHBOURS", 1)
    return asked


@pytest.mark.parametrize(
    "preset", [demo_preset(DemoConfig()), paper_cifar10(), paper_nuswide()], ids=["demo", "cifar10", "nuswide"]
)
def test_a_preset_takes_two_steps_of_every_stage_and_arm(preset, photos, no_download, tmp_path):
    few = {"epochs": 1, "batch_size": 4}  # of 8 images: two steps
    stages.distill(
        photos, tmp_path / "student", teacher=preset.teacher, student=preset.student, unlabelled=True,
        config=dataclasses.replace(preset.distill, checkpoint_seconds=0, **few),
    )  # fmt: skip
    assert no_download == [preset.teacher.name]
    assert load_student(tmp_path / "student")[0].input.size == preset.student.size
    check_two_steps(tmp_path / "student")
    for arm, framework in preset.trials:
        backbone = {"distilled": str(tmp_path / "student"), "scratch": preset.student.name}.get(
            arm, preset.teacher.name
        )
        run = tmp_path / f"{arm}-{framework}"
        key = TrialKey(seed=0, bits=preset.bits[-1], framework=framework, arm=arm)
        config = dataclasses.replace(preset.hash_config(key), **few)
        stages.hash(photos, run, backbone, config=config, student=preset.student, teacher=preset.teacher)
        check_two_steps(run)
        hasher, description = load_hasher(run)
        assert hasher.num_bits == preset.bits[-1]
        assert description["settings"]["framework"] == framework
    assert {arm for arm, _ in preset.trials} >= {"distilled"}


def check_two_steps(run):
    """Two steps were recorded, their losses are finite, and the checkpoint holds finite weights."""
    (line,) = [line for line in RunDirectory.metrics_in(run) if "loss" in line]
    assert line["step"] == 2
    assert math.isfinite(line["loss"])
    module = load_model(run)[0]
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())


DEMO = (
    "--database-size", "300", "--train-size", "200", "--teacher-size", "32", "--distill-epochs", "1",
    "--hash-epochs", "1", "--bits", "16",
)  # fmt: skip
KEYS = {  # which other people's scripts read
    "arm", "backbone", "framework", "bits", "seed", "dataset", "protocol", "map_at_all", "parameters", "macs",
    "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The run directory of a tiny demonstration on real CIFAR-10 with the real EfficientNet-Lite0, and its stdout."""
    output = tmp_path_factory.mktemp("demo") / "run"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main(["demo", "--output", str(output), *DEMO, "--json"]) == 0
    return output, out.getvalue()


def test_the_demo_writes_results_and_a_page(demo):
    output, printed = demo
    rows = json.loads((output / "results.json").read_text())
    assert json.loads(printed) == rows
    assert [(row["arm"], row["framework"]) for row in rows] == [
        ("distilled", "csq"), ("distilled", "dch"), ("scratch", "csq"), ("teacher_frozen", "csq")
    ]  # fmt: skip
    for row in rows:
        assert row.keys() >= KEYS
        assert 0 < row["map_at_all"] <= 1
        assert row["parameters"] > 0 and row["macs"] > 0 and row["seconds"] > 0
        assert (row["bits"], row["seed"], row["dataset"]) == (16, 0, "cifar10")
        assert row["protocol"] == "cifar10: 1,000 queries, 200 labelled, database 300"
    page = (output / "report.html").read_text()
    assert "mAP" in page
    assert " ".join(("distilhash demo", *DEMO)) in " ".join(page.split())
    assert page.count("data:image/png") > 50  # ten queries and their neighbours


def test_the_demo_keeps_its_queries_out_of_training(demo):
    output, _ = demo
    split = json.loads((output / "0" / "split.json").read_text())
    assert {part: len(split[part]) for part in ("query", "train", "database")} == {
        "query": 1000, "train": 200, "database": 300
    }  # fmt: skip
    seen = set(split["train"]) | set(split["database"])
    assert not seen & set(split["query"])
    assert load_student(output / "0" / "distill")[1]["unlabelled_images"] == len(seen) == 500


def test_the_demo_is_not_run_over_and_resumes_at_once(demo, capsys):
    output, printed = demo
    before = (output / "results.json").read_bytes()
    words = ["demo", "--output", str(output), *DEMO, "--json"]
    assert cli.main(words) == 2
    assert capsys.readouterr() == (
        "",
        f"distilhash: the run directory exists; got {output}; continue it with --resume or replace it with "
        "--overwrite.\n",
    )
    assert cli.main([*words, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (printed, "")  # nothing is done again
    assert (output / "results.json").read_bytes() == before
    assert cli.main([*words, "--resume", "--seed", "1"]) == 2
    assert "seed was 0 and is 1" in capsys.readouterr().err


def test_hashing_on_cifar10_is_as_published(cifar10, monkeypatch):
    """Resize(224) of the whole image and no augmentation; NUS-WIDE: Resize(256), a flip and a crop of 224."""
    paper, nuswide = paper_cifar10(), paper_nuswide()
    key = TrialKey(seed=0, bits=16, framework="csq", arm="scratch")
    hasher = new_hasher(new_student(paper.student, 0), paper.hash_config(key))
    image = cifar10.images[0]
    whole = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR))
    assert np.array_equal(Preprocess(hasher.input).crop(image[None])[0], whole)
    assert hasher.backbone.architecture["input"]["margin"] == 0
    assert new_student(paper.student, 0).input.margin == 1 - 224 / 256  # of distillation
    assert paper.hash_config(key).unaugmented
    assert (nuswide.hash.unaugmented, nuswide.hash.margin) == (False, None)


def test_hashing_without_augmentation_sees_the_images_themselves(cifar10, tmp_path, monkeypatch):
    monkeypatch.setattr("distilhash.training.hash.make_views", None)  # is not called
    config = HashConfig(epochs=1, batch_size=4, bits=8, unaugmented=True, precision="float32")
    hasher = new_hasher(new_student(StudentConfig(size=32, stem="small"), 0), config)
    hashing.train_hasher(cifar10, np.arange(8), hasher, config, RunDirectory(tmp_path / "run", {}))


def test_initial_weights_are_as_published():
    kernel = new_student(paper_cifar10().student, 0).layer3[0].conv1.weight
    fan_in = kernel[0].numel()  # PyTorch's default: uniform within 1 / sqrt(fan in)
    assert kernel.abs().max().item() == pytest.approx(fan_in**-0.5, rel=1e-3)
    assert kernel.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.01)
    key = TrialKey(seed=0, bits=64, framework="csq", arm="teacher_finetuned")
    head = new_hasher(create_student("v1"), paper_cifar10().hash_config(key)).head
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.bias.any()


def test_the_published_pair_of_networks_and_the_precision_can_be_chosen():
    chosen = ReproduceConfig(budget="paper", student="v2", teacher="torchvision/alexnet", precision="float32")
    preset = preset_of("cifar10", chosen)
    assert (preset.student.name, preset.teacher.name) == ("v2", "torchvision/alexnet")
    assert (preset.distill.precision, preset.hash.precision) == ("float32", "float32")
    key = TrialKey(seed=0, bits=16, framework="dch", arm="teacher_finetuned")
    assert preset.hash_config(key).head_std is None  # the published AlexNet has PyTorch's own
    assert preset.hash_config(key).batch_size == 128
    teacher = create_teacher("torchvision/alexnet", pretrained=False)
    assert teacher.feature_dim == new_student(preset.student, 0).feature_dim == 4096  # compared without a projection
