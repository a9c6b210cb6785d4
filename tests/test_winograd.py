"""A quarter of the multiplications, the same map and the same gradients."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distilhash.models import winograd
from distilhash.models.small_map import Conv3x3
from distilhash.models.winograd import LEAST_CHANNELS, LEAST_PIXELS, Winograd3x3, convolve, fits, pays

SHAPES = [(3, 8, 16, 4, 4), (2, 16, 8, 5, 9), (1, 8, 8, 1, 20), (2, 24, 8, 14, 14), (1, 8, 8, 7, 17), (2, 8, 8, 18, 3)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def drawn(shape, dtype=torch.float64, layout=torch.channels_last):
    """A map and a kernel that ask for gradients."""
    torch.manual_seed(sum(shape))
    count, into, out, height, width = shape
    x = torch.randn(count, into, height, width, dtype=dtype).contiguous(memory_format=layout)
    return x.requires_grad_(), torch.randn(out, into, 3, 3, dtype=dtype).requires_grad_()


def with_gradients(function, x, weight):
    y = function(x, weight)
    return [y, *torch.autograd.grad(y, (x, weight), torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))]


def plain(x, weight):
    return F.conv2d(x, weight, padding=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_plain_convolution_and_its_gradients(shape, layout):
    x, weight = drawn(shape, layout=layout)
    before = x.detach().clone()
    for found, expected in zip(with_gradients(convolve, x, weight), with_gradients(plain, x, weight), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(x, before)


@pytest.mark.parametrize("cache", [1, 2**40])
def test_no_band_is_lost_whatever_part_of_them_is_done_at_once(monkeypatch, cache):
    x, weight = drawn((5, 8, 8, 10, 6))
    expected = with_gradients(plain, x, weight)
    monkeypatch.setattr(winograd, "CACHE", cache)
    for found, wanted in zip(with_gradients(convolve, x, weight), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_cores_share_the_bands():
    """Three cores, and more of them than bands; another thread may have its own number."""
    for shape in ((5, 8, 8, 10, 6), (1, 8, 8, 4, 4)):
        x, weight = drawn(shape)
        alone = with_gradients(convolve, x, weight)
        torch.set_num_threads(3)
        try:
            together = with_gradients(convolve, x, weight)
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(1)
        for found, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_one_for_inference_equals_the_plain_convolution(bias, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 8, 3, padding=1, bias=bias).double()
    x = torch.randn(3, 16, 15, 6, dtype=torch.float64).contiguous(memory_format=layout)
    with torch.inference_mode():
        torch.testing.assert_close(Winograd3x3(conv)(x), conv(x), rtol=1e-11, atol=1e-11)


def test_single_precision_keeps_five_digits():
    x, weight = drawn((2, 128, 128, 28, 28), torch.float32)
    found = with_gradients(convolve, x, weight)
    exact = with_gradients(plain, x.detach().double().requires_grad_(), weight.detach().double().requires_grad_())
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() < 2e-5 * other.abs().max()


def test_a_student_trains_through_it_and_answers_without(monkeypatch):
    called = []
    monkeypatch.setattr(winograd, "convolve", lambda x, weight: called.append(x.shape) or convolve(x, weight))
    conv = Conv3x3(LEAST_CHANNELS, LEAST_CHANNELS)
    x = torch.randn(2, LEAST_CHANNELS, 8, 8)
    torch.testing.assert_close(conv(x), conv.eval()(x), rtol=1e-4, atol=1e-4)
    assert len(called) == 1
    Conv3x3(LEAST_CHANNELS, LEAST_CHANNELS, stride=2)(x)
    assert len(called) == 1


def test_where_numba_cannot_be_loaded_the_library_convolves(monkeypatch):
    conv = nn.Conv2d(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=1)
    assert fits(conv)
    monkeypatch.setattr(winograd, "_compiler", winograd._compiler.__wrapped__)
    monkeypatch.delitem(sys.modules, "distilhash.models.tiles")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not fits(conv)


@pytest.mark.parametrize("options", [
    {"kernel_size": 5, "padding": 2}, {"kernel_size": 3, "padding": 1, "stride": 2}, {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1, "groups": 2}, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
])  # fmt: skip
def test_only_its_own_kind_fits(options):
    channels = LEAST_CHANNELS
    assert fits(nn.Conv2d(channels, channels, 3, padding=1))
    assert not fits(nn.Conv2d(channels, channels, **options))
    assert not fits(nn.Conv2d(channels - 1, channels, 3, padding=1))
    assert not fits(nn.Conv2d(channels + 1, channels, 3, padding=1))
    assert not fits(nn.ReLU())


def test_what_does_not_pay_is_left_to_the_library():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    large = torch.randn(1, 2, 1, LEAST_PIXELS)
    assert pays(conv, large)
    assert not pays(conv, large[..., 1:])
    assert not pays(conv, large[:0])
    assert not pays(conv, large.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(conv, large)
    torch.set_num_threads(2)
    try:
        assert not pays(conv, large)  # the cores would wait for each other
        assert pays(conv, large.expand(winograd.LEAST_WORK, -1, -1, -1))
    finally:
        torch.set_num_threads(1)
    called = []
    conv.register_forward_hook(lambda *_: called.append(True))
    with torch.inference_mode():
        Winograd3x3(conv)(large[..., 1:])
    assert called
