"""The network that is exported: the hasher's own function, written in the operators that other runtimes run well.

BatchNorm is folded. A 3x3 convolution on a map of 1 or 2 pixels (``models.conv``) becomes the smaller convolution
or the one matrix that it amounts to at this input size, so that the file holds finished weights instead of slices.

Shapes: N images, S pixels, C channels in, O channels out, K bits.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilhash.models.conv import Conv3x3
from distilhash.models.fold import folded
from distilhash.models.hasher import Hasher


class ExportNetwork(nn.Module):
    """Outputs (N, K) of preprocessed images (N, 3, S, S): the hasher in eval mode, for inference only."""

    def __init__(self, hasher: Hasher) -> None:
        super().__init__()
        self.backbone = folded(hasher.backbone)
        self.head = hasher.head
        _finish_small_maps(self.backbone, hasher.input.size)

    def forward(self, images_N3SS: Tensor) -> Tensor:
        """As the hasher's."""
        outputs_NK: Tensor = self.head(F.relu(self.backbone(images_N3SS)))
        return outputs_NK


class _MatrixOn2x2(nn.Module):
    """A 3x3 convolution of padding 1 on 2x2 pixels: every pair of pixels is joined by exactly one tap."""

    def __init__(self, conv: Conv3x3) -> None:
        super().__init__()
        self.channels_out = conv.out_channels
        self.matrix = nn.Linear(4 * conv.in_channels, 4 * conv.out_channels)
        rows = [conv.weight.detach()[:, :, 1 - i : 3 - i, 1 - j : 3 - j] for i in (0, 1) for j in (0, 1)]
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        with torch.no_grad():
            self.matrix.weight.copy_(torch.stack(rows, 1).reshape(4 * conv.out_channels, -1))
            self.matrix.bias.copy_(bias.repeat_interleave(4))

    def forward(self, x_NC22: Tensor) -> Tensor:
        """The map (N, O, 2, 2)."""
        flat: Tensor = self.matrix(x_NC22.flatten(1))
        return flat.reshape(-1, self.channels_out, 2, 2)


def _smaller(conv: Conv3x3, weight: Tensor) -> nn.Conv2d:
    """A convolution without padding whose window is the whole map."""
    small = nn.Conv2d(conv.in_channels, conv.out_channels, weight.shape[2])
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    with torch.no_grad():
        small.weight.copy_(weight)
        assert small.bias is not None
        small.bias.copy_(bias)
    return small


def _finish_small_maps(backbone: nn.Module, size: int) -> None:
    """Replace each Conv3x3 that meets a map of 1x1 or 2x2 pixels at this input size."""
    sides: dict[str, tuple[int, ...]] = {}

    def note(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sides[name] = tuple(inputs[0].shape[2:])

    convolutions = {name: module for name, module in backbone.named_modules() if isinstance(module, Conv3x3)}
    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in convolutions.items()]
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    for name, conv in convolutions.items():
        weight = conv.weight.detach()
        if sides.get(name) == (1, 1):
            replacement: nn.Module = _smaller(conv, weight[:, :, 1:2, 1:2])
        elif sides.get(name) == (2, 2) and conv.stride == (2, 2):
            replacement = _smaller(conv, weight[:, :, 1:, 1:])
        elif sides.get(name) == (2, 2):
            replacement = _MatrixOn2x2(conv)
        else:
            continue
        parent, _, own = name.rpartition(".")
        setattr(backbone.get_submodule(parent), own, replacement)
