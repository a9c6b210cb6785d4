"""3x3 convolutions with a quarter of the multiplications, forward and backward, on a CPU.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016, arXiv 1509.09308): with x a window of 6x6 pixels, g a kernel and y the 4x4 pixels of the output,

    y = A^T [ (G g G^T) * (B^T x B) ] A,

summed over the channels, so that a product of matrices for each of the 36 places of a window does the work of 144 taps.
The gradient of x is such a convolution of y's gradient with the turned kernel; the gradient of g is

    G^T [ (B^T x B) * (A dy A^T) ] G,

summed over the windows. What A and B do is in ``tiles``; where Numba cannot be loaded, the library's convolution runs.
A few bands of tiles go through all three steps while they are in a core's cache, and each core has bands of its own.

Sums are as exact as any, but meet larger numbers on the way: fp32 keeps about five digits of the largest output where
the plain sum keeps six.

Shapes: N images, C channels in, O channels out, H, W sides of the map in pixels, T tiles of 4x4 pixels.
"""

from __future__ import annotations

import functools
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from distilhash.runtime import on_each_core

# Below these the transforms, or the threads that wait for each other, cost more than the products saved; measured.
LEAST_CHANNELS, LEAST_PIXELS = 64, 4 * 4
LEAST_WORK = 50_000_000  # of a convolution that is spread over cores, multiply-adds
CACHE = 2**21  # of one core that transformed tiles may fill, bytes

# From three taps to six, for the points of ``tiles``.
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Is this a convolution that can be computed so: 3x3, of padding 1 and stride 1, and of enough channels?"""
    return (
        _compiler()
        and isinstance(conv, nn.Conv2d)
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
        and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
        and conv.in_channels % 8 == conv.out_channels % 8 == 0  # whole vectors of ``tiles``
    )


@functools.cache
def _compiler() -> bool:
    try:
        import distilhash.models.tiles  # noqa: F401
    except ImportError:  # also where Numba is older than it should be for this NumPy
        return False
    return True


def pays(conv: nn.Conv2d, x_NCHW: Tensor) -> bool:
    """Is it faster for such a map?"""
    pixels = x_NCHW.shape[2] * x_NCHW.shape[3]
    return (
        x_NCHW.device.type == "cpu"
        and x_NCHW.dtype in (torch.float32, torch.float64)
        and pixels >= LEAST_PIXELS
        and len(x_NCHW) * pixels * conv.weight.numel() >= (1 if torch.get_num_threads() == 1 else LEAST_WORK)
        # Under bfloat16 the transforms would round, too, and spread their error over the tile.
        and not torch.is_autocast_enabled("cpu")
    )


class Winograd3x3(nn.Module):
    """The same function as a convolution that ``fits``, for inference: its kernels are transformed once."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.plain = conv
        self.kernels_36CO = _transformed(conv.weight.detach())
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The map (N, O, H, W) of a map (N, C, H, W)."""
        if not pays(self.plain, x_NCHW):
            plain: Tensor = self.plain(x_NCHW)
            return plain
        return _convolved(x_NCHW, self.kernels_36CO, self.bias)


def convolve(x_NCHW: Tensor, weight_OC33: Tensor) -> Tensor:
    """The map (N, O, H, W) of a convolution of padding 1, with gradients for both arguments (but no second ones)."""
    y_NOHW: Tensor = _Convolution.apply(x_NCHW, weight_OC33)
    return y_NOHW


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight_OC33: Tensor) -> Tensor:
        ctx.save_for_backward(x_NCHW, weight_OC33)
        return _convolved(x_NCHW, _transformed(weight_OC33))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_NOHW: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_NCHW, weight_OC33 = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _convolved(upstream_NOHW, _transformed(weight_OC33.flip(2, 3).transpose(0, 1)))
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(x_NCHW, upstream_NOHW)
        return of_x, of_weight


def _transformed(weight_OC33: Tensor) -> Tensor:
    """G g G^T for each pair of channels: (36, C, O)."""
    out, into = weight_OC33.shape[:2]
    taps_9CO = weight_OC33.permute(2, 3, 1, 0).reshape(9, into * out)
    return (_points(weight_OC33.dtype) @ taps_9CO).view(36, into, out)


@functools.cache
def _points(dtype: torch.dtype) -> Tensor:
    """The Kronecker square of G: (36, 9)."""
    kernel = torch.tensor(_KERNEL, dtype=torch.float64)
    return torch.kron(kernel, kernel).to(dtype)


def _convolved(x_NCHW: Tensor, kernels_36CO: Tensor, bias: Tensor | None = None) -> Tensor:
    count, _, height, width = x_NCHW.shape
    x = _Map(x_NCHW.permute(0, 2, 3, 1).contiguous())
    y = _Map(x_NCHW.new_empty(count, height, width, kernels_36CO.shape[2]))

    def some(bands: range) -> None:
        few = _few(bands, x, y)
        windows, products = _Tiles(x, few), _Tiles(y, few)
        for start in bands[::few]:
            part = range(start, min(start + few, bands.stop))
            products_36TO = torch.bmm(windows.gather(part), kernels_36CO, out=products.of(part))
            if bias is not None:
                products_36TO[7].add_(bias)  # the point 1 in both directions gives each pixel its product once
            products.scatter(part)

    on_each_core(some, _shares(x.bands))
    return y.pixels_NHWC.permute(0, 3, 1, 2)


def _weight_gradient(x_NCHW: Tensor, upstream_NOHW: Tensor) -> Tensor:
    """(O, C, 3, 3)."""
    x = _Map(x_NCHW.detach().permute(0, 2, 3, 1).contiguous())
    y = _Map(upstream_NOHW.permute(0, 2, 3, 1).contiguous())
    out, into = y.channels, x.channels

    def some(bands: range) -> Tensor:
        few = _few(bands, x, y)
        windows, upstream = _Tiles(x, few), _Tiles(y, few)
        sums_36OC = x_NCHW.new_zeros(36, out, into)
        for start in bands[::few]:
            part = range(start, min(start + few, bands.stop))
            sums_36OC.baddbmm_(upstream.gather(part, upstream=True).mT, windows.gather(part))
        return sums_36OC

    first, *others = on_each_core(some, _shares(x.bands))
    for sums_36OC in others:
        first += sums_36OC
    taps = _points(first.dtype).T @ first.view(36, out * into)
    return taps.view(3, 3, out, into).permute(2, 3, 0, 1)


class _Map:
    """A map that is read and written by bands of tiles, in channels-last memory."""

    def __init__(self, pixels_NHWC: Tensor) -> None:
        self.pixels_NHWC = pixels_NHWC
        count, self.height, self.width, self.channels = pixels_NHWC.shape
        self.across = -(-self.width // 4)
        self.bands = count * -(-self.height // 4)
        self.size = pixels_NHWC.element_size()
        self.one = (np.float32 if pixels_NHWC.dtype == torch.float32 else np.float64)(1)


def _few(bands: range, *maps: _Map) -> int:
    """So many of the bands of these maps stay in the cache, transformed."""
    size = sum(36 * one.across * one.channels * one.size for one in maps)
    return max(1, min(len(bands), CACHE // size))


def _shares(bands: int) -> list[range]:
    """The bands, dealt out to the cores."""
    share = -(-bands // torch.get_num_threads())
    return [range(start, min(start + share, bands)) for start in range(0, bands, share)]


class _Tiles:
    """One core's room for the tiles (36, T, C) of a few bands of a map."""

    def __init__(self, of: _Map, bands: int) -> None:
        self._map = of
        self._room = of.pixels_NHWC.new_empty(36 * bands * of.across * of.channels)
        self._lines = of.pixels_NHWC.new_zeros(7, 4 * of.across + 2, of.channels)

    def of(self, bands: range) -> Tensor:
        """The tiles of these bands, whatever they hold."""
        tiles = len(bands) * self._map.across
        return self._room[: 36 * tiles * self._map.channels].view(36, tiles, self._map.channels)

    def gather(self, bands: range, *, upstream: bool = False) -> Tensor:
        """The tiles of these bands, transformed: as windows of an input, or as an output's gradient."""
        from distilhash.models import tiles

        of = self._map
        tiles.gather(
            of.pixels_NHWC.data_ptr(), self._room.data_ptr(), self._lines.data_ptr(), bands.start, len(bands),
            of.height, of.width, of.channels, of.size, upstream, of.one,
        )  # fmt: skip
        return self.of(bands)

    def scatter(self, bands: range) -> None:
        """Write these bands of the map from their tiles."""
        from distilhash.models import tiles

        of = self._map
        tiles.scatter(
            self._room.data_ptr(), of.pixels_NHWC.data_ptr(), self._lines.data_ptr(), bands.start, len(bands),
            of.height, of.width, of.channels, of.size, of.one,
        )  # fmt: skip
