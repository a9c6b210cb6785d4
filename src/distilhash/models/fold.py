"""A network for inference: every BatchNorm folded into the convolution before it.

In eval mode BatchNorm is an affine map of each channel, and so is a factor and an offset of the kernel before it: the
same function of an image with fewer passes over memory.

Shapes: N images, S pixels, D features.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from distilhash.models.backbone import Backbone

TOLERANCE = 1e-3  # of the largest feature: folding only rounds differently


def folded(backbone: Backbone, *, precision: str = "float32") -> nn.Module:
    """A copy of a backbone for inference, in channels-last memory.

    A BatchNorm is folded into a convolution that is declared just before it. Declared before need not mean applied
    before: unless the backbone is ``in_order``, the features of a made-up image are compared with the original's.

    Args:
        backbone: stays as it is.
        precision: "bfloat16" rounds weights and maps to it; images and features are float32 all the same.

    Returns:
        The copy, or the backbone itself where folding would change its features by more than rounding.
    """
    fast = copy.deepcopy(backbone).eval().requires_grad_(False)
    _fold(fast)
    fast.to(memory_format=torch.channels_last)
    network = fast if backbone.in_order or _alike(backbone, fast) else backbone
    return Rounded(network) if precision == "bfloat16" else network


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


def _alike(backbone: Backbone, fast: nn.Module) -> bool:
    """Whether the features of a made-up image are the same but for rounding."""
    side = backbone.input.size
    image_13SS = torch.linspace(-2, 2, 3 * side * side).sin().mul(2).reshape(1, 3, side, side)
    image_13SS = image_13SS.to(next(backbone.parameters(), image_13SS).device)
    training = backbone.training
    backbone.eval()
    with torch.inference_mode():
        expected, found = backbone(image_13SS), fast(image_13SS)
    backbone.train(training)
    return bool((expected - found).abs().max() <= TOLERANCE * expected.abs().max())
