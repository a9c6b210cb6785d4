"""A network for inference: the same function of an image with fewer passes over memory and fewer multiplications.

In eval mode BatchNorm is an affine map of each channel, and so is a factor and an offset of the kernel before it. The
3x3 convolutions that remain are computed as ``winograd`` says, with kernels that are transformed once.

Shapes: N images, S pixels.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from distilhash.models.backbone import Backbone
from distilhash.models.winograd import Winograd3x3, fits

TOLERANCE = 1e-3  # of the largest feature: folding only rounds differently


def folded(backbone: Backbone, *, winograd: bool = True, precision: str = "float32") -> nn.Module:
    """A copy for inference with every BatchNorm folded into the convolution that is declared just before it, and, on a
    CPU, with a quarter of the multiplications in 3x3 convolutions, unless ``winograd`` is off (other runtimes have
    ways of their own). In ``precision`` "bfloat16" weights and maps are rounded to it, and no
    multiplication is spared: the transforms would round once more. Images and features are float32 all the same.

    Declared before need not mean applied before: unless the backbone is known to be ``in_order``, the features of a
    made-up image are compared with the original's, and where they differ by more than rounding the original is
    returned.
    """
    fast = copy.deepcopy(backbone).eval().requires_grad_(False)
    _fold(fast)
    fast = fast.to(memory_format=torch.channels_last)
    if winograd and precision == "float32":
        _transform(fast)
    network = fast if backbone.in_order or _alike(backbone, fast) else backbone
    return Rounded(network) if precision == "bfloat16" else network


def _alike(backbone: Backbone, fast: nn.Module) -> bool:
    """Are the features of a made-up image the same, but for rounding?"""
    side = backbone.input.size
    image_13SS = torch.linspace(-2, 2, 3 * side * side).sin().mul(2).reshape(1, 3, side, side)
    image_13SS = image_13SS.to(next(backbone.parameters(), image_13SS).device)
    training = backbone.training
    backbone.eval()
    with torch.inference_mode():
        expected, found = backbone(image_13SS), fast(image_13SS)
    backbone.train(training)
    return bool((expected - found).abs().max() <= TOLERANCE * expected.abs().max())


class Rounded(nn.Module):
    """A copy of a network for inference in bfloat16, between float32 images and float32 features.

    Under torch.autocast the weights would be rounded anew for every batch.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().to(torch.bfloat16)

    def forward(self, images_N3SS: Tensor) -> Tensor:
        """Features (N, D)."""
        features_ND: Tensor = self.network(images_N3SS.bfloat16())
        return features_ND.float()


def _fold(module: nn.Module) -> None:
    before: nn.Conv2d | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None:
            assert child.running_mean is not None and child.running_var is not None
            before.weight, before.bias = fuse_conv_bn_weights(
                before.weight, before.bias, child.running_mean, child.running_var, child.eps, child.weight, child.bias
            )
            # timm's BatchNorm carries the activation that follows it.
            setattr(module, name, getattr(child, "act", nn.Identity()))
        else:
            _fold(child)
        before = child if isinstance(child, nn.Conv2d) else None


def _transform(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if fits(child):
            setattr(module, name, Winograd3x3(child))
        else:
            _transform(child)
