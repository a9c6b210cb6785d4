"""A 3x3 convolution that leaves out what only padding would meet: on maps of 1 and 2 pixels, most of its work.

A student that gets 32 pixels ends in maps of 2x2 and 1x1, where most taps of a 3x3 kernel fall on padding. Computed as
the smaller convolution or the matrix product that remains, the result is the same function of input and kernel, and a
training step of the student takes three quarters of the time. Larger maps are left to PyTorch.

Shapes: N images, C channels in, O channels out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1 and stride 1 or 2; its tensors are those of nn.Conv2d."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, 3, stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The map (N, O, ceil(H / stride), ceil(W / stride)) of a map (N, C, H, W)."""
        if x.shape[2:] == (1, 1):  # only the centre meets the pixel
            return F.conv2d(x, self.weight[:, :, 1:2, 1:2], self.bias)
        if x.shape[2:] == (2, 2):
            if self.stride == (2, 2):  # one window, with its first row and column outside
                return F.conv2d(x, self.weight[:, :, 1:, 1:], self.bias)
            return self._on_2x2(x)
        return super().forward(x)

    def _on_2x2(self, x: Tensor) -> Tensor:
        """Four pixels to four pixels: every pair of them is joined by exactly one tap, so the map is one matrix."""
        # For the output pixel (i, j) the taps that meet the four input pixels, (O, C, 2, 2).
        taps = [self.weight[:, :, 1 - i : 3 - i, 1 - j : 3 - j] for i in (0, 1) for j in (0, 1)]
        matrix = torch.stack(taps).permute(0, 1, 3, 4, 2).reshape(4 * self.out_channels, 4 * self.in_channels)
        flat = F.linear(x.permute(0, 2, 3, 1).reshape(len(x), -1), matrix)
        y = flat.view(len(x), 2, 2, self.out_channels).permute(0, 3, 1, 2)
        return y if self.bias is None else y + self.bias[:, None, None]
