"""A 3x3 convolution with half of the multiplications, for inference on a CPU.

Winograd's minimal filtering F(4, 3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016,
arXiv 1509.09308), along the columns of a map alone: four rows of the output from six rows of the input take six
products instead of twelve. A product is a convolution with a 1x3 kernel, which is left to the library. In both
directions a quarter of the products would remain, but on a CPU the transforms then cost what they save, measured.

fp32 rounds differently, by about 1e-6 of the largest output.

Shapes: N images, C channels in, O channels out, H, W sides of the map in pixels, T = ceil(H / 4) tiles of four rows.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this the transforms cost more than the products that they save, measured.
LEAST_CHANNELS, LEAST_PIXELS = 64, 14 * 14

# Rows of the kernel to the six products' kernels, at the points 0, 1, -1, 2, -2 and infinity; the last with the sign
# that saves a pass below.
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, -1),
)


class RowConv3x3(nn.Module):
    """The same function as a 3x3 convolution of padding 1 and stride 1, without gradients."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.plain = conv
        kernels = torch.einsum("ai,ocij->aocj", torch.tensor(_KERNEL, dtype=conv.weight.dtype), conv.weight.detach())
        self.kernels = [kernel[:, :, None].contiguous(memory_format=torch.channels_last) for kernel in kernels]

    @staticmethod
    def replaces(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Is this a convolution of that kind, and of enough channels?"""
        return (
            isinstance(conv, nn.Conv2d)
            and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
            and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
            and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The map (N, O, H, W) of a map (N, C, H, W)."""
        height, width = x_NCHW.shape[2:]
        # Under bfloat16 the transforms would round, too, and spread their error over the tile.
        if height * width < LEAST_PIXELS or torch.is_autocast_enabled("cpu"):
            plain: Tensor = self.plain(x_NCHW)
            return plain
        x_NHWC = x_NCHW.permute(0, 2, 3, 1)
        if height % 4:
            x_NHWC = F.pad(x_NHWC, (0, 0, 0, 0, 0, -height % 4))
        products = [
            # The point 1 gives every row of the output the same, so the bias is added there.
            F.conv2d(rows_NTWC.permute(0, 3, 1, 2), kernel, self.plain.bias if point == 1 else None, padding=(0, 1))
            for point, (rows_NTWC, kernel) in enumerate(zip(_rows_in(x_NHWC), self.kernels, strict=True))
        ]
        return _rows_out([product.permute(0, 2, 3, 1) for product in products], height).permute(0, 3, 1, 2)


def _rows_in(x_NHWC: Tensor) -> list[Tensor]:
    """For each point (N, T, W, C): of a tile's rows d0..d5, which overlap by two, the combinations

    4 d0 - 5 d2 + d4,  -4 d1 - 4 d2 + d3 + d4,  4 d1 - 4 d2 - d3 + d4,  -2 d1 - d2 + 2 d3 + d4,
    2 d1 - d2 - 2 d3 + d4,  -(4 d1 - 5 d3 + d5).
    """
    d1, d2, d3, d4 = (x_NHWC[:, row::4] for row in range(4))  # d0 is d4 of the tile before, d5 is d1 of the next
    even, odd = d4 - d2, d3 - d1
    near_even, near_odd = torch.sub(d4, d2, alpha=4), torch.sub(d3, d1, alpha=4)
    first = torch.sub(even, d2, alpha=4)
    first[:, 1:].add_(d4[:, :-1], alpha=4)
    last = torch.add(d3, odd, alpha=4)
    last[:, :-1].sub_(d1[:, 1:])
    far = torch.sub(even, odd, alpha=2)
    return [first, near_even + near_odd, near_even.sub_(near_odd), even.add_(odd, alpha=2), far, last]


def _rows_out(products: list[Tensor], height: int) -> Tensor:
    """(N, H, W, O): the four rows of each tile from its six products (N, T, W, O), which are overwritten."""
    first, one, minus_one, two, minus_two, last = products
    even, odd = one + minus_one, one.sub_(minus_one)
    far_even, far_odd = two + minus_two, two.sub_(minus_two)
    count, _, width, channels = first.shape
    y_NHWO = first.new_empty(count, height, width, channels)
    for row, (a, b, factor) in enumerate([
        (first.add_(even), far_even, 1),
        (odd, far_odd, 2),
        (even, far_even, 4),
        (last.add_(odd), far_odd, 8),
    ]):  # fmt: skip
        y = y_NHWO[:, row::4]
        torch.add(a[:, : y.shape[1]], b[:, : y.shape[1]], alpha=factor, out=y)
    return y_NHWO
