"""Costs against the published figures, against a count by hand, and against a module whose time is known."""

import time

import pytest
import timm
import torch
import torchvision
from torch import nn

from distilhash import api
from distilhash.errors import DistilhashError
from distilhash.evaluation.profile import count_macs, count_parameters, latency, profile
from distilhash.models import create_hasher, create_student


class Asleep(nn.Module):
    """A module that takes a known time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)
        self.seconds = seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        time.sleep(self.seconds)
        return self.head(images.mean((2, 3)))


def resnet50_hasher() -> nn.Module:
    backbone = torchvision.models.resnet50(weights=None)
    backbone.fc = nn.Sequential(nn.ReLU(), nn.Linear(2048, 64))
    return backbone


def alexnet_hasher() -> nn.Module:
    backbone = torchvision.models.alexnet(weights=None)
    backbone.classifier[6] = nn.Linear(4096, 64)
    return backbone


@pytest.mark.parametrize(
    ("build", "parameters", "macs"),
    [
        (lambda: create_hasher("v1", 64), "3.437", "1.087"),
        (lambda: create_hasher("v2", 64), "5.060", "1.111"),
        (resnet50_hasher, "23.639", "4.087"),
        (alexnet_hasher, "57.266", "0.710"),
    ],
)
def test_published_networks(build, parameters, macs):
    module = build()
    assert f"{count_parameters(module) / 1e6:.3f}" == parameters
    assert f"{count_macs(module, 224) / 1e9:.3f}" == macs


def test_a_teacher_is_counted_without_its_weights(monkeypatch):
    def fetched(name, fetch):
        raise AssertionError(f"{name} is fetched")

    monkeypatch.setattr("distilhash.models.teacher._fetched", fetched)
    names = ["torchvision/resnet50", "pip/efficientnet_lite0", "timm/mobilenetv3_small_050"]
    found = api.profile(names, size=32, seconds=0.001)
    assert f"{found[0]['parameters'] / 1e6:.3f}" == "23.639"
    assert [row["network"] for row in found] == names


def test_macs_are_the_loops_of_each_layer():
    module = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2), groups=1),  # 16 -> 8
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2),  # 8 -> 16
        nn.Flatten(),
        nn.Linear(4 * 16 * 16, 7),
    )
    by_hand = (8 * 8) * 8 * 3 * 15 + (8 * 8) * 8 * 1 * 9 + (8 * 8) * 8 * 2 * 4 + 4 * 16 * 16 * 7
    assert count_macs(module, 16) == by_hand


def test_attention_of_a_vit_is_counted():
    """ViT-tiny at 224: N tokens of width D, M hidden units; attention is two products of N x N x D."""
    N, D, M, blocks, patch = 14 * 14 + 1, 192, 768, 12, 16
    block = N * D * 3 * D + 2 * N * N * D + N * D * D + 2 * N * D * M
    by_hand = 14 * 14 * 3 * patch * patch * D + blocks * block + D * 1000
    assert count_macs(timm.create_model("vit_tiny_patch16_224"), 224) == by_hand


def test_taps_that_meet_only_padding_count_as_in_the_tables():
    student = create_student("v1", size=32, stem="small")  # ends in maps of one and two pixels
    convolutions = [module for module in student.modules() if isinstance(module, nn.Conv2d)]
    by_hand = 0

    def add(layer: nn.Conv2d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal by_hand
        by_hand += output.numel() * layer.weight[0].numel()

    hooks = [layer.register_forward_hook(add) for layer in convolutions]
    with torch.no_grad():
        student.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert count_macs(student, 32) == by_hand


def test_a_layer_used_twice_is_counted_twice_and_its_weights_once():
    layer = nn.Linear(4, 4)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer, layer)
    assert count_macs(module, 2) == 4 * 4 * 3 + 2 * 16
    assert count_parameters(module) == 16 + 20


def test_counting_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    count_macs(module, 8)
    latency(module, 8, seconds=0.01)
    assert module.training and module[1].training
    assert not module[0]._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_latency_of_a_known_time():
    assert 0.01 <= latency(Asleep(0.01), 4, batch_size=5, seconds=0.1) < 0.05
    found = profile(Asleep(0.01), 4, batch_size=5, seconds=0.05)
    assert 10 <= found.latency_ms_batch1 < 50 and 100 < found.images_per_second <= 500


def test_profile_gathers_the_same_numbers():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = profile(module, 10, batch_size=3, seconds=0.01)
    assert (found.name, found.size, found.batch_size) == ("Sequential", 10, 3)
    assert (found.parameters, found.macs) == (4 * 27 + 4 + 10, 64 * 4 * 27 + 8)
    assert found.threads == torch.get_num_threads()
    assert found.latency_ms_batch1 > 0 and found.images_per_second > 0
    assert profile(module, 10, name="mine", seconds=0.01).name == "mine"
    module.backbone = nn.Identity()
    module.backbone.name = "its backbone"
    assert profile(module, 10, seconds=0.01).name == "its backbone"
    module.name = "its own"
    assert profile(module, 10, seconds=0.01).name == "its own"


@pytest.mark.parametrize(
    "call",
    [
        lambda m: count_macs(m, 0),
        lambda m: count_macs(create_hasher("v1", 8), 64),  # made for 224 pixels
        lambda m: latency(m, 8, batch_size=0),
        lambda m: latency(m, 8, seconds=0),
    ],
)
def test_what_cannot_be_measured_is_refused(call):
    with pytest.raises(DistilhashError):
        call(nn.Conv2d(3, 4, 1))
