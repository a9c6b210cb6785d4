"""The compact students: the published blocks, at any input size.

Reddy, Dubey, Mukherjee, "Context Unaware Knowledge Distillation for Image Retrieval" (arXiv 2207.09070); the published
code (satoru2001/CUKDFIR at d9a60ee) has a 7x7/2 stem of 64 channels, a 3x3/2 max-pool, then basic residual blocks
[2, 3, 5, 3, 2] at strides 1, 2, 2, 2, 2, and flattens the last map. At 224 pixels that map is 4x4: v1 has 2048 features
(the width of ResNet50) and 3,305,920 parameters, v2 has 4096 (AlexNet) and 4,798,144. The names of the tensors are the
published ones, and so are the outputs, within 1e-4.

Shapes: N images, S pixels (the side of the input), D features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from distilhash.config import InputConfig, as_dict
from distilhash.errors import DistilhashError, unknown_name
from distilhash.models.backbone import Backbone
from distilhash.models.conv import Conv3x3

# Channels of the five stages.
STUDENTS: dict[str, tuple[int, int, int, int, int]] = {
    "v1": (64, 64, 128, 128, 128),
    "v2": (64, 64, 128, 128, 256),
}

# Kernel, stride and padding of the first convolution; a 3x3/2 max-pool follows each.
STEMS: dict[str, tuple[int, int, int]] = {
    "published": (7, 2, 3),  # 1/4 of the side: for 224 pixels
    "small": (3, 2, 1),  # 1/4 of the side, with sharper edges: for 32 to 64 pixels
    "tiny": (3, 1, 1),  # 1/2 of the side: keeps a 16x16 map of 32 pixels
}

STEM_CHANNELS = 64
BLOCKS = (2, 3, 5, 3, 2)
STRIDES = (1, 2, 2, 2, 2)
SMALLEST_MAP = 4  # side of the map after the stem, pixels: below it most stages see nothing but padding


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(channels_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = Conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """The block's map, (N, channels, side/stride, side/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        return F.relu(x + shortcut, inplace=True)


class Student(Backbone):
    """A student of STUDENTS with a stem of STEMS; forward gives the flattened last map, which is not negative."""

    in_order = True

    def __init__(self, name: str, stem: str, input: InputConfig) -> None:
        super().__init__()
        self.name, self.input = name, input
        self.architecture = {
            "kind": "student",
            "name": name,
            "size": input.size,
            "stem": stem,
            "input": as_dict(input),
        }
        self.feature_dim = STUDENTS[name][-1] * _last_side(input.size, stem) ** 2

        widths = STUDENTS[name]
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, *STEMS[stem], bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.layer1, self.layer2, self.layer3, self.layer4, self.layer5 = (
            _stage(channels_in, width, blocks, stride)
            for channels_in, width, blocks, stride in zip(
                (STEM_CHANNELS, *widths[:-1]), widths, BLOCKS, STRIDES, strict=True
            )
        )

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_N3SS: Tensor) -> Tensor:
        """Features (N, D) of images that were preprocessed as self.input says."""
        x = F.max_pool2d(self.bn1(self.conv1(images_N3SS)), 3, 2, 1)
        x = F.relu(x, inplace=True)  # behind the pool: the same values and gradients, on a quarter of the pixels
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4, self.layer5):
            x = stage(x)
        return x.flatten(1)


def create_student(name: str, size: int = 224, stem: str = "published", *, input: InputConfig | None = None) -> Student:
    """A student with random weights (He et al. 2015, by fan-out) from torch's global generator.

    Args:
        name: a key of STUDENTS.
        size: side of the input, pixels.
        stem: a key of STEMS.
        input: replaces the ImageNet preprocessing; its size must be ``size``.

    Raises:
        DistilhashError: an unknown name or stem, or an input that is too small for the stem.
    """
    if name not in STUDENTS:
        raise unknown_name("student", name, STUDENTS)
    if stem not in STEMS:
        raise unknown_name("stem", stem, STEMS)
    if not isinstance(size, int) or size < 1:
        raise DistilhashError("the size of a student's input is a positive whole number of pixels", repr(size))
    if _stem_side(size, stem) < SMALLEST_MAP:
        smallest = next(side for side in range(size, 1024) if _stem_side(side, stem) >= SMALLEST_MAP)
        raise DistilhashError(
            f"the input is too small for the {stem!r} stem", f"{size} pixels", f"take at least {smallest} pixels"
        )
    if input is None:
        input = InputConfig(size=size)
    if input.size != size:
        raise DistilhashError(
            "the student's size and its input's size differ", f"{size} and {input.size} pixels", "give both the same"
        )
    return Student(name, stem, input)


def _stage(channels_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))


def _after(side: int, kernel: int, stride: int, padding: int) -> int:
    """Side of the map behind a convolution or a pooling."""
    return (side + 2 * padding - kernel) // stride + 1


def _stem_side(size: int, stem: str) -> int:
    return _after(_after(size, *STEMS[stem]), 3, 2, 1)


def _last_side(size: int, stem: str) -> int:
    side = _stem_side(size, stem)
    for stride in STRIDES:
        side = _after(side, 3, stride, 1)
    return side
