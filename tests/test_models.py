"""Students and hashers against the published code's tensors and outputs, and at their edges."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distilhash.config import InputConfig
from distilhash.errors import DistilhashError
from distilhash.models import (
    STEMS,
    HasherNetwork,
    Student,
    create_hasher,
    create_student,
    load_published_student,
    rebuild_backbone,
)

PUBLISHED = json.loads((Path(__file__).parent / "data" / "architecture.json").read_text())["architecture"]
NAMES = ["v1", "v2"]


def published_shapes(case):
    """Every tensor of the published state dict with its shape, out of the compact list of its modules."""
    shapes = {}
    for module, size in case["modules"].items():
        if isinstance(size, int):  # BatchNorm
            shapes |= {f"{module}.{part}": [size] for part in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{module}.num_batches_tracked"] = []
        else:
            shapes[f"{module}.weight"] = size
    shapes[f"{module}.bias"] = size[:1]  # of the last module, the hash layer
    return shapes


def published_state(case):
    """The weights that the fixture was computed with: its "fill", one tensor at a time."""
    state = {}
    for name, shape in published_shapes(case).items():
        count = math.prod(shape)
        waves = 43758.5453 * np.sin(12.9898 * np.arange(count) + 1)
        z = waves - np.floor(waves) - 0.5
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
            continue
        if len(shape) >= 2:
            values = z * math.sqrt(24 / math.prod(shape[1:]))
        elif name.endswith(("weight", "running_var")):
            values = 1 + 0.2 * z
        else:
            values = 0.2 * z
        state[name] = torch.from_numpy(values.reshape(shape)).float()
    return state


@pytest.fixture(scope="module", params=zip(NAMES, PUBLISHED, strict=True), ids=NAMES)
def published(request):
    name, case = request.param
    return name, case, published_state(case)


def test_the_published_checkpoint_gives_the_published_outputs(published):
    name, case, state = published
    hasher = load_published_student(state).eval()
    assert isinstance(hasher, HasherNetwork)
    assert (hasher.backbone.name, hasher.num_bits) == (name, case["bits"])
    assert sum(parameter.numel() for parameter in hasher.parameters()) == case["parameters"]
    images = torch.from_numpy(0.5 * np.sin(0.01 * np.arange(2 * 3 * 224 * 224))).float().reshape(2, 3, 224, 224)
    with torch.inference_mode():
        outputs = hasher(images)
    expected = torch.tensor(case["output"])
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_the_names_order_and_shapes_are_the_published_ones(published):
    name, case, _ = published
    own = [(key, list(tensor.shape)) for key, tensor in create_student(name).state_dict().items()]
    assert own == list(published_shapes(case).items())[:-2]


@pytest.mark.parametrize(("name", "parameters", "feature_dim"), [("v1", 3_305_920, 2048), ("v2", 4_798_144, 4096)])
def test_parameters_and_features(name, parameters, feature_dim):
    student = create_student(name)
    assert sum(parameter.numel() for parameter in student.parameters()) == parameters
    assert student.feature_dim == feature_dim
    assert student.input == InputConfig(size=224)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("size", [13, 32, 33, 64, 97])
def test_feature_dim_is_what_runs(stem, size):
    student = create_student("v2", size, stem).eval()
    with torch.inference_mode():
        assert student(torch.zeros(1, 3, size, size)).shape == (1, student.feature_dim)


def test_the_tiny_stem_keeps_a_map_of_16():
    student = create_student("v1", 32, "tiny")
    sides = []
    student.layer1.register_forward_hook(lambda _module, _args, out: sides.append(out.shape[-1]))
    student.eval()(torch.zeros(1, 3, 32, 32))
    assert sides == [16]


def test_initial_weights_are_he_normal_by_fan_out_and_follow_the_seed():
    def weights(seed):
        torch.manual_seed(seed)
        return create_student("v1", 32, "small").layer3[0].conv1.weight  # 64 channels to 128

    assert weights(0).std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_the_input_can_be_replaced_and_is_rebuilt():
    own = InputConfig(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), crop_mode="pad", margin=0.0625)
    student = create_student("v2", 32, "small", input=own)
    again = rebuild_backbone(json.loads(json.dumps(student.architecture)))
    assert isinstance(again, Student)
    assert (again.input, again.architecture, again.feature_dim) == (own, student.architecture, student.feature_dim)
    again.load_state_dict(student.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(student.eval()(images), again.eval()(images))


def test_hasher_is_relu_and_one_linear_layer():
    class Signed(nn.Module):
        """A backbone whose features are the first pixels, of either sign."""

        feature_dim, input, name, architecture = 6, InputConfig(size=4), "signed", {}

        def forward(self, images):
            return images.flatten(1)[:, :6]

    hasher = create_hasher(Signed(), num_bits=5)
    images = torch.randn(3, 3, 4, 4)
    features = images.flatten(1)[:, :6].numpy()
    weight, bias = hasher.head.weight.detach().numpy(), hasher.head.bias.detach().numpy()
    expected = np.maximum(features, 0) @ weight.T + bias
    np.testing.assert_allclose(hasher(images).detach().numpy(), expected, atol=1e-6)
    assert hasher.num_bits == 5
    assert hasher.input == InputConfig(size=4)


@pytest.mark.parametrize("freeze", [True, False])
def test_freeze_backbone_trains_the_head_alone(freeze):
    torch.manual_seed(0)
    hasher = create_hasher(create_student("v1", 32, "small"), num_bits=8, freeze_backbone=freeze).train()
    before = copy.deepcopy(hasher.state_dict())
    optimizer = torch.optim.SGD(hasher.parameters(), lr=0.1, weight_decay=0.1)
    hasher(torch.randn(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    changed = {name for name, tensor in hasher.state_dict().items() if not torch.equal(tensor, before[name])}
    head = {"head.weight", "head.bias"}
    assert changed == (head if freeze else set(before))
    assert hasher.head.training
    assert hasher.backbone.training is not freeze


def test_create_hasher_by_name():
    hasher = create_hasher("v1", num_bits=16)
    assert isinstance(hasher.backbone, Student)
    assert hasher.head.weight.shape == (16, 2048)


def test_published_files_load(tmp_path, published):
    name, case, state = published
    head = list(state)[-2:]
    headless = {key: tensor for key, tensor in state.items() if key not in head}

    parallel = tmp_path / "parallel.pth"
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, parallel)
    hasher = load_published_student(parallel, num_bits=case["bits"])
    assert torch.equal(hasher.head.weight, state[head[0]])

    distilled = tmp_path / "distilled.safetensors"
    save_file(headless | {"fc.weight": torch.ones(10, 2048), "fc.bias": torch.ones(10)}, distilled)
    student = load_published_student(distilled)
    assert isinstance(student, Student)
    assert all(torch.equal(tensor, headless[key]) for key, tensor in student.state_dict().items())

    fresh = load_published_student(headless, num_bits=24)
    assert (fresh.num_bits, fresh.backbone.name) == (24, name)
    assert torch.equal(fresh.backbone.conv1.weight, state["conv1.weight"])


class Payload:
    """An object that touches a file beside its own when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.touched = folder / "touched"

    def __reduce__(self):
        return Path.touch, (self.touched,)


def broken_file(kind: str, folder: Path) -> Path:
    path = folder / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "object":
        torch.save(Payload(folder), path)
    elif kind == "whole module":
        torch.save(nn.Linear(2, 2), path)
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)
    elif kind in ("text", "safetensors"):
        path.write_text("weights, but in words")
    elif kind == "empty":
        path.touch()
    return path


@pytest.mark.parametrize("kind", ["object", "whole module", "no tensors", "text", "safetensors", "empty"])
def test_only_tensors_are_loaded(kind, tmp_path):
    with pytest.raises(DistilhashError, match=r"not a file of plain tensors, .*pickled") as caught:
        load_published_student(broken_file(kind, tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "touched").exists()


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(DistilhashError, match=r"no such file of weights; got .*gone\.pth"):
        load_published_student(tmp_path / "gone.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {"weight": torch.ones(3)}, ["210 missing, such as conv1.weight, bn1.weight", "1 unexpected"]),
        (lambda state: state | {"layer9.weight": torch.ones(1)}, ["1 unexpected, layer9.weight"]),
        (lambda state: state | {"bn1.bias": torch.ones(3)}, ["1 of another shape, bn1.bias (3,) where (64,) belongs"]),
        (lambda state: state | {"binary.weight": torch.ones(48, 9)}, ["hash layer", "(48, 9) where (48, 2048)"]),
        (lambda state: state | {"binary.weight": torch.tensor(1.0)}, ["hash layer", "() where (1, 2048)"]),
        (lambda state: state | {"layer5.0.conv1.weight": torch.tensor(1.0)}, ["() where (128, 128, 3, 3)"]),
        (lambda state: {k: v for k, v in state.items() if k != "binary.weight"}, ["1 missing, weight"]),
    ],
)
def test_another_architecture_is_told_by_its_tensors(change, words):
    state = {name: torch.zeros(shape) for name, shape in published_shapes(PUBLISHED[0]).items()}
    with pytest.raises(DistilhashError) as caught:
        load_published_student(change(state))
    for word in words:
        assert word in str(caught.value)


def test_another_code_length_is_named():
    state = {name: torch.zeros(shape) for name, shape in published_shapes(PUBLISHED[0]).items()}
    with pytest.raises(DistilhashError, match="48 bits in it, 32 asked for"):
        load_published_student(state, num_bits=32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: create_student("v3"), ["'v3'", "v1, v2"]),
        (lambda: create_student("v1", 32, "large"), ["'large'", "published, small, tiny"]),
        (lambda: create_student("v1", 0), ["positive", "0"]),
        (lambda: create_student("v1", 22.4), ["whole number", "22.4"]),
        (lambda: create_student("v1", 12), ["12 pixels", "at least 13 pixels"]),
        (lambda: create_student("v1", 6, "tiny"), ["6 pixels", "at least 7 pixels"]),
        (lambda: create_student("v1", 64, input=InputConfig(size=32)), ["64 and 32 pixels"]),
        (lambda: create_hasher("v3"), ["'v3'", "v1, v2"]),
        (lambda: create_hasher("v1", num_bits=0), ["0", "bits"]),
        (lambda: create_hasher(nn.Linear(2, 2)), ["Linear", "feature_dim, input, name, architecture"]),
        (lambda: rebuild_backbone({"kind": "hasher"}), ["'hasher'", "student, teacher"]),
        (lambda: rebuild_backbone({"kind": "student", "name": "v1", "size": 32}), ["'stem'"]),
    ],
)
def test_a_mistake_is_named(call, words):
    with pytest.raises(DistilhashError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
