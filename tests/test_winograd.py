"""Half of the multiplications, the same map."""

import pytest
import torch
from torch import nn

from distilhash.models.winograd import LEAST_CHANNELS, LEAST_PIXELS, RowConv3x3

SIDES = [(16, 16), (14, 14), (15, 20), (17, 13), (18, 14), (4, 50), (1, 200), (3, 90)]


@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_plain_convolution(height, width, bias):
    torch.manual_seed(height)
    conv = nn.Conv2d(6, 5, 3, padding=1, bias=bias).double()
    x = torch.randn(3, 6, height, width, dtype=torch.float64)
    before = x.clone()
    with torch.inference_mode():
        for layout in (torch.contiguous_format, torch.channels_last):
            found = RowConv3x3(conv)(x.contiguous(memory_format=layout))
            torch.testing.assert_close(found, conv(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


def test_single_precision_loses_no_more_than_its_last_digits():
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(2, 64, 56, 56)
    with torch.inference_mode():
        exact = conv.double()(x.double())
        found = RowConv3x3(conv.float())(x)
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def test_small_maps_are_left_to_the_library():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    called = []
    conv.register_forward_hook(lambda *_: called.append(True))
    with torch.inference_mode():
        RowConv3x3(conv)(torch.randn(1, 2, 1, LEAST_PIXELS - 1))
        assert len(called) == 1
        RowConv3x3(conv)(torch.randn(1, 2, 1, LEAST_PIXELS))
        assert len(called) == 1


@pytest.mark.parametrize("options", [
    {"kernel_size": 5, "padding": 2}, {"kernel_size": 3, "padding": 1, "stride": 2}, {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1, "groups": 2}, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
])  # fmt: skip
def test_only_its_own_kind_is_replaced(options):
    channels = LEAST_CHANNELS
    assert RowConv3x3.replaces(nn.Conv2d(channels, channels, 3, padding=1))
    assert not RowConv3x3.replaces(nn.Conv2d(channels, channels, **options))
    assert not RowConv3x3.replaces(nn.Conv2d(channels - 1, channels, 3, padding=1))
    assert not RowConv3x3.replaces(nn.ReLU())
