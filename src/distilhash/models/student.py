"""The students: the published blocks at any input size, and any network of timm or of the user's own.

Reddy, Dubey, Sanodiya, Karn, "Context Unaware Knowledge Distillation for Image Retrieval" (arXiv 2207.09070). The code
they published (satoru2001/CUKDFIR at d9a60ee) has a 7x7/2 stem of 64 channels, a 3x3/2 max-pool, then basic residual
blocks [2, 3, 5, 3, 2] at strides 1, 2, 2, 2, 2, and flattens the last map. At 224 pixels that map is 4x4: v1 has 2048
features (the width of ResNet50) and 3,305,920 parameters, v2 has 4096 (AlexNet) and 4,798,144. The names of the tensors
are the published ones, and so are the outputs, within 1e-4.

Shapes: N images, S pixels (the side of the input), C channels in, O channels out, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilhash.config import InputConfig, StudentConfig, as_dict
from distilhash.errors import DistilhashError, unknown_name
from distilhash.models.backbone import Backbone
from distilhash.models.registry import NETWORKS, builder_of
from distilhash.models.teacher import features_of, timm_network

# Channels of the five stages.
STUDENTS = {"v1": (64, 64, 128, 128, 128), "v2": (64, 64, 128, 128, 256)}

# Kernel, stride and padding of the first convolution; a 3x3/2 max-pool follows each.
STEMS = {
    "published": (7, 2, 3),  # 1/4 of the side: for 224 pixels
    "small": (3, 2, 1),  # 1/4 of the side, with sharper edges: for 32 to 64 pixels
    "tiny": (3, 1, 1),  # 1/2 of the side: keeps a 16x16 map of 32 pixels
}

STEM_CHANNELS = 64
BLOCKS = (2, 3, 5, 3, 2)
STRIDES = (1, 2, 2, 2, 2)
SMALLEST_MAP = 4  # side of the map after the stem, pixels: below it most stages see nothing but padding


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1 and stride 1 or 2 that leaves out what only padding would meet.

    Of a map of 1 or 2 pixels most taps fall on padding. The smaller convolution or the matrix product that remains is
    the same function of input and kernel, and saves a quarter of a training step of a student that gets 32 pixels.
    """

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
            projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

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
            "kind": "student", "name": name, "size": input.size, "stem": stem, "input": as_dict(input),
        }  # fmt: skip
        widths = STUDENTS[name]
        side = _stem_side(input.size, stem)
        for stride in STRIDES:
            side = _after(side, 3, stride, 1)
        self.feature_dim = widths[-1] * side**2

        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, *STEMS[stem], bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        stages = zip((STEM_CHANNELS, *widths[:-1]), widths, BLOCKS, STRIDES, strict=True)
        self.layer1, self.layer2, self.layer3, self.layer4, self.layer5 = (_stage(*stage) for stage in stages)

    def forward(self, images_N3SS: Tensor) -> Tensor:
        """Features (N, D) of images that were preprocessed as self.input says."""
        x = F.max_pool2d(self.bn1(self.conv1(images_N3SS)), 3, 2, 1)
        x = F.relu(x, inplace=True)  # behind the pool: the same values and gradients, on a quarter of the pixels
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4, self.layer5):
            x = stage(x)
        return x.flatten(1)


def create_student(
    name: str, size: int = 224, stem: str = "published", *, input: InputConfig | None = None, initial: str = "he",
    trusted: bool = True,
) -> Backbone:  # fmt: skip
    """A student with random weights from torch's global generator.

    Args:
        name: a key of STUDENTS, "timm/NAME", a registered network, or "FILE.py:FUNCTION" (models.registry).
        size: side of the input, pixels.
        stem: a key of STEMS, for those of STUDENTS.
        input: replaces the ImageNet preprocessing; its size must be ``size``.
        initial: of the convolutions of STUDENTS: "he" (He et al. 2015, by fan-out) or "published" (PyTorch's default);
            "pretrained": a timm network's own weights, which are downloaded.
        trusted: whether the user gave the name; that of a checkpoint runs no file.

    Raises:
        DistilhashError: an unknown name or stem, or an input that is too small for the stem or the network.
    """
    if initial == "pretrained" and not name.startswith("timm/"):
        raise DistilhashError("only a timm network has pretrained weights as a student", name, "leave initial out")
    builder = None if name in STUDENTS else builder_of(name, trusted=trusted)
    if stem not in STEMS:
        raise unknown_name("stem", stem, STEMS)
    if not isinstance(size, int) or size < 1:
        raise DistilhashError("the size of a student's input is a positive whole number of pixels", repr(size))
    if builder is not None:
        return _adopted(builder(size), name, input or InputConfig(size=size))
    if name.startswith("timm/"):
        network, _, own = timm_network(name, size, pretrained=initial == "pretrained")
        pixels = own.with_crop_of(input or own) if initial == "pretrained" else input or own
        student = _adopted(network, name, pixels)
        student.pretrained = initial == "pretrained"
        return student
    if name not in STUDENTS:
        raise unknown_name("student", name, [*STUDENTS, "timm/NAME", *NETWORKS, "FILE.py:FUNCTION"])
    if _stem_side(size, stem) < SMALLEST_MAP:
        smallest = next(side for side in range(size, 1024) if _stem_side(side, stem) >= SMALLEST_MAP)
        raise DistilhashError(
            f"the input is too small for the {stem!r} stem", f"{size} pixels", f"take at least {smallest} pixels"
        )
    input = input or InputConfig(size=size)
    if input.size != size:
        raise DistilhashError(
            "the student's size and its input's size differ", f"{size} and {input.size} pixels", "give both the same"
        )
    student = Student(name, stem, input)
    if initial == "he":
        for module in student.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return student


def new_student(config: StudentConfig, seed: int) -> Backbone:
    """A student with the random initial weights of a seed."""
    input = InputConfig(size=config.size, crop_mode=config.crop_mode, margin=config.margin)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_student(config.name, config.size, config.stem, input=input, initial=config.initial)


def is_student(name: str) -> bool:
    """Whether a name is a student's and no path; timm's networks are teachers, too, and not meant."""
    return name in STUDENTS or builder_of(name, trusted=True) is not None


class OtherStudent(Backbone):
    """A student of another kind than the published ones: any module from images to features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_N3SS: Tensor) -> Tensor:
        """Features (N, D) of images that were preprocessed as self.input says."""
        features_ND: Tensor = self.network(images_N3SS)
        return features_ND


def _adopted(network: nn.Module, name: str, input: InputConfig) -> Backbone:
    """A network as the student of this name, once a blank image has told how many features it gives."""
    student = network if isinstance(network, Backbone) else OtherStudent(network)
    student.name, student.input = name, input
    student.architecture = {"kind": "student", "name": name, "size": input.size, "input": as_dict(input)}
    student.feature_dim = features_of(student)
    return student


def _stage(channels_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))


def _after(side: int, kernel: int, stride: int, padding: int) -> int:
    """Side of the map behind a convolution or a pooling."""
    return (side + 2 * padding - kernel) // stride + 1


def _stem_side(size: int, stem: str) -> int:
    return _after(_after(size, *STEMS[stem]), 3, 2, 1)
