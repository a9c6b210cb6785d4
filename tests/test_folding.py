"""Folding changes the speed of a network and nothing else."""

import pytest
import torch

from distilhash.config import InputConfig
from distilhash.models import create_student, create_teacher
from distilhash.models.backbone import Backbone
from distilhash.models.fold import folded


@pytest.mark.parametrize("make", [
    lambda: create_student("v1", size=32, stem="small"),
    lambda: create_student("v2", size=64, stem="tiny"),
    lambda: create_student("v1"),
    lambda: create_teacher("pip/efficientnet_lite0", size=64),
], ids=["v1 at 32", "v2 at 64", "v1 at 224", "teacher"])  # fmt: skip
def test_features_stay_and_batchnorm_goes(make):
    torch.manual_seed(0)
    backbone = make()
    for module in backbone.modules():  # statistics that are not 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    fast = folded(backbone)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    images = torch.randn(3, 3, backbone.input.size, backbone.input.size)
    with torch.inference_mode():
        torch.testing.assert_close(fast(images), backbone.eval()(images), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


class _AppliedInAnotherOrder(Backbone):
    """Declares a BatchNorm behind a convolution that does not feed it."""

    def __init__(self):
        super().__init__()
        self.input, self.feature_dim = InputConfig(size=8), 3
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(0.7)

    def forward(self, x):
        return self.conv(self.norm(x)).mean((2, 3))


def test_a_network_that_cannot_be_folded_is_returned_as_it_is():
    torch.manual_seed(0)
    backbone = _AppliedInAnotherOrder().eval()
    assert folded(backbone) is backbone
