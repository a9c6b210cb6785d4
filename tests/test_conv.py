"""On small maps the shortcut is the same function as the plain convolution: values and both gradients."""

import pytest
import torch
import torch.nn.functional as F

from distilhash.models.student import Conv3x3


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_the_plain_convolution(side, stride, bias, layout):
    torch.manual_seed(side + 10 * stride)
    conv = Conv3x3(6, 5, stride).double().to(memory_format=layout)
    if bias:  # as folding leaves it
        conv.bias = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    x = torch.randn(4, 6, side, side, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    plain_x = x.detach().clone().requires_grad_()
    weight = conv.weight.detach().clone().requires_grad_()
    expected = F.conv2d(plain_x, weight, conv.bias, stride, padding=1)
    upstream = torch.randn_like(expected)
    found = conv(x)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, plain_x.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(conv.weight.grad, weight.grad, rtol=1e-12, atol=1e-12)
