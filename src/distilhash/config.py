"""The settings of every stage, as frozen keyword-only dataclasses; the command line reads their docstrings as help.

A config is plain data: it is what ``config.json`` of a run holds, and what a fingerprint is taken of. Functions of
arrays (losses, metrics, codes, indexes) never see one. One file, so that a setting has one place to be looked up.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from operator import ge, gt, lt
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from distilhash.errors import DistilhashError, unknown_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Names of what lies in modules that import PyTorch; `distilhash list` shows them without it.
TEACHERS = (
    "torchvision/resnet50", "torchvision/alexnet", "pip/efficientnet_lite0", "pip/efficientnet_lite1",
    "pip/efficientnet_lite2",
)  # fmt: skip
STUDENTS, LOSSES, FRAMEWORKS = ("v1", "v2"), ("raw", "standardised", "prototypes"), ("csq", "dch")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The numbers that a setting may take: ``ge`` and more, more than ``gt``, less than ``lt``; always finite."""

    ge: float | None = None
    gt: float | None = None
    lt: float | None = None

    def broken_by(self, value: float) -> str:
        """The bound that a value breaks, in words; empty where it breaks none."""
        for words, bound, holds in (("at least", self.ge, ge), ("above", self.gt, gt), ("below", self.lt, lt)):
            if bound is not None and not holds(value, bound):
                return f"{words} {bound}"
        return "" if math.isfinite(value) else "finite"


Count = Annotated[int, Bounds(ge=1)]
Batch = Annotated[int, Bounds(ge=2)]  # BatchNorm has no variance of one image, and a pairwise loss no pair
Positive = Annotated[float, Bounds(gt=0)]
NotNegative = Annotated[float, Bounds(ge=0)]
Seed = Annotated[int, Bounds(ge=0, lt=2**63)]  # what every generator takes
Margin = Annotated[float, Bounds(ge=0, lt=0.5)]

CropMode = Literal["crop", "pad"]
Optimizer = Literal["muon", "adamw", "published"]
Precision = Literal["auto", "float32", "bfloat16"]
Protocol = Literal["cifar10", "cifar10-1", "cifar10-2"]
Part = Literal["all", "query", "database", "train", "validation"]


_hints = functools.cache(functools.partial(get_type_hints, include_extras=True))


class Config:
    """What every config shares: a value that its setting does not allow is refused where the config is made."""

    def __post_init__(self) -> None:
        """Check each value against the bounds or the choices in its annotation; None stands for a later choice."""
        stage = type(self).__name__.removesuffix("Config").lower()
        for name, hint in _hints(type(self)).items():  # type: ignore[arg-type]
            value = getattr(self, name)
            if isinstance(value, Path):
                object.__setattr__(self, name, str(value))
            for part in () if value is None else (hint, *get_args(hint)):  # a hint, and those of a union
                if get_origin(part) is Literal and value not in get_args(part):
                    raise unknown_name(f"{stage} {name}", str(value), get_args(part))
                for bounds in getattr(part, "__metadata__", ()):
                    number = isinstance(value, int | float) and not isinstance(value, bool)
                    broken = bounds.broken_by(value) if number else "a number"
                    if broken:
                        raise DistilhashError(f"{stage} {name} must be {broken}", value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputConfig(Config):
    """What a network expects of an image: the whole of its preprocessing."""

    size: Count = 224
    """Side of the square input, pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of RGB in [0, 1], subtracted."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of RGB in [0, 1], divided by."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of resizing; both antialias."""
    crop_mode: CropMode = "crop"
    """"crop": a window of (1 - margin) of the image; "pad": the whole image, shifted by reflection."""
    margin: Margin = 0.125
    """"crop": share of the side outside the window; "pad": largest shift, as a share of the side."""

    def with_crop_of(self, other: InputConfig) -> InputConfig:
        """This input with the other's crop mode and margin, so that both networks see the same part of an image."""
        return dataclasses.replace(self, crop_mode=other.crop_mode, margin=other.margin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanConfig(Config):
    """Which files below a folder are read. What a list file names is read in any case."""

    exclude: tuple[str, ...] = ()
    """Pass over files and folders of this name, or of this path below the folder; wildcards are *, ? and [...]."""
    hidden: bool = False
    """Also hidden files, and folders that programs keep for themselves, such as @eaDir, __MACOSX and node_modules."""

    def __post_init__(self) -> None:
        """Refuse what would match nothing, or every letter of a single pattern."""
        given: object = self.exclude
        if isinstance(given, str) or not all(pattern.strip("/") for pattern in self.exclude):
            raise DistilhashError("exclude takes a sequence of patterns, none of them empty", repr(given))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig(Config):
    """A frozen pretrained network whose features are the target of distillation."""

    name: str = "pip/efficientnet_lite0"
    """torchvision/NAME, timm/NAME or pip/efficientnet_lite0 (1, 2)."""
    weights: str | Path | None = None
    """State dict on disk (.safetensors, or .pth read with weights_only). None: the pretrained weights."""
    size: Count | None = None
    """Side of the input, pixels. None: the teacher's own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig(Config):
    """A compact network: the published blocks at a chosen input size, or any other network."""

    name: str = "v1"
    """Architecture: v1, v2, timm/NAME, or FILE.py:FUNCTION (from its size to an nn.Module of one's own)."""
    size: Count = 224
    """Side of the input, pixels."""
    stem: Literal["published", "small", "tiny"] = "published"
    """First layers: published (7x7, stride 2, and pooling), or small or tiny for inputs of 32 to 64 pixels."""
    crop_mode: CropMode = "crop"
    """crop: a window of the image, as published; pad: the whole image, shifted by reflection."""
    margin: Margin = 0.125
    """Share of the side that the crop leaves out, or the largest shift of the padded image."""
    initial: Literal["he", "published", "pretrained"] = "he"
    """Of v1 and v2: he (normal, by fan-out) or published (PyTorch's default); of timm/NAME also pretrained."""


# The default student of ``fit``: chosen by training time, as its maps begin with 16 pixels a side instead of 56.
PHOTO_STUDENT = StudentConfig(size=64, stem="small")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(Config):
    """Label-free distillation of a frozen teacher into a student."""

    loss: str = "prototypes"
    """Target of the student: raw (the paper's MSE of features), standardised or prototypes."""
    epochs: Count = 8
    """Passes over the unlabelled images."""
    batch_size: Batch = 128
    """Images in a step."""
    optimizer: Optimizer = "muon"
    """muon or adamw (with a one-cycle schedule), or published (Adam with a constant rate)."""
    learning_rate: Positive = 2e-3
    """AdamW's peak learning rate, or the published Adam's constant one."""
    muon_lr: Positive = 0.02
    """Muon's peak learning rate for convolution kernels."""
    weight_decay: NotNegative = 0.02
    """Decoupled weight decay of kernels and matrices; with the published Adam, of every weight."""
    prototypes: Annotated[int, Bounds(ge=2)] = 256
    """Number of prototypes of the teacher's features; fewer where there are few images."""
    temperature: Positive = 0.1
    """Temperature of the soft assignment to prototypes, in units of cosine similarity."""
    views: Count = 1
    """Number of augmented views of each image in the feature cache; the first is the image itself."""
    augment: bool = False
    """The student alone sees each view mirrored at random, brighter or darker: its features bear such changes."""
    mode: Literal["cached", "online"] = "cached"
    """cached: compute the teacher's features once, before training; online: run the teacher in every step."""
    precision: Precision = "auto"
    """Of the teacher's and the student's convolutions; weights stay in float32. auto: the faster one here."""
    validation_size: Annotated[int, Bounds(ge=11)] = 500
    """Number of unlabelled images in the validation set, on which agreement with the teacher is measured."""
    seed: Seed = 0
    """Random seed."""
    checkpoint_seconds: NotNegative = 30.0
    """Least time between two checkpoints, seconds; 0 saves every step."""

    @property
    def cached_views(self) -> int:
        """Views in the feature cache: where the teacher runs in every step, only the images themselves are cached."""
        return self.views if self.mode == "cached" else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashConfig(Config):
    """Supervised hashing of a backbone."""

    framework: str = "csq"
    """Hashing framework: csq (Central Similarity Quantization) or dch (Deep Cauchy Hashing)."""
    bits: Count = 64
    """Length of a code, bits."""
    epochs: Count = 6
    """Passes over the labelled training images."""
    batch_size: Batch = 64
    """Images in a step."""
    optimizer: Optimizer = "muon"
    """muon or adamw (with a one-cycle schedule), or published (RMSprop with a constant rate)."""
    learning_rate: Positive = 2e-3
    """AdamW's peak learning rate, or the published RMSprop's constant one."""
    muon_lr: Positive | None = None
    """Muon's peak learning rate for convolution kernels. None: 0.05, or 0.002 for pretrained kernels."""
    weight_decay: NotNegative = 0.02
    """Decoupled weight decay of kernels and matrices; with the published RMSprop, of every weight."""
    gamma: Positive = 20.0
    """DCH: scale of the Cauchy distribution, in units of Hamming distance."""
    quantization_weight: NotNegative | None = None
    """Weight of the quantization loss. None: the published 1e-4 for CSQ and 0.1 for DCH."""
    centres: Literal["auto", "hadamard", "spread", "bernoulli"] = "auto"
    """CSQ: how hash centres are made. auto: hadamard where they exist."""
    freeze_backbone: bool = False
    """Train only the hash head."""
    unaugmented: bool = False
    """Train on the images as they are, and do not flip and shift them anew in every epoch."""
    margin: Margin | None = None
    """Share of the side that the crop leaves out, in training and of all codes. None: as the backbone was trained."""
    head_std: Positive | None = None
    """Standard deviation of the head's initial weights, with a bias of 0. None: PyTorch's default."""
    precision: Precision = "auto"
    """Of convolutions; weights stay in float32. auto: the faster one here."""
    seed: Seed = 0
    """Random seed."""
    checkpoint_seconds: NotNegative = 30.0
    """Least time between two checkpoints, seconds; 0 saves every step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig(Config):
    """A hasher of unlabelled photos: a student distilled on them, or the frozen teacher, hashed without labels."""

    backbone: Literal["auto", "student", "teacher"] = "auto"
    """What is hashed. auto: the better one as measured, and of fewer than 500 photos the teacher."""
    method: Literal["auto", "itq", "pseudo"] = "auto"
    """Of the student: itq (rotated principal components) or pseudo (CSQ on clusters of the teacher's features)."""
    bits: Count = 64
    """Length of a code, bits."""
    epochs: Count | None = None
    """Passes over the photos in distillation. None: 40,000 photos in all, in 8 to 40 epochs."""
    views: Count = 2
    """Number of augmented views of each photo that the teacher sees; the first is the photo itself."""
    batch_size: Batch = 64
    """Photos in a step."""
    clusters: Annotated[int, Bounds(ge=2)] = 16
    """pseudo: number of clusters; fewer where there are few photos."""
    hash_epochs: Count = 3
    """pseudo: passes over the photos in hashing."""
    precision: Precision = "auto"
    """Of convolutions; weights stay in float32. auto: the faster one here."""
    seed: Seed = 0
    """Random seed."""
    checkpoint_seconds: NotNegative = 30.0
    """Least time between two checkpoints, seconds; 0 saves every step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """A hasher written as ONNX and compared with the PyTorch model."""

    calibration_images: Count = 256
    """Number of images that calibrate the int8 ranges of activations."""
    compared_images: Count = 1_000
    """Number of further images on which codes are compared."""
    database_images: Count = 12_000
    """Most database images for the comparison of mAP."""
    seconds: Positive = 1.0
    """Duration of each timing, seconds."""
    seed: Seed = 0
    """Random seed of the draws of images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """The demonstration on CIFAR-10: the paper's comparison at a size that a laptop computes in minutes."""

    seed: Seed = 0
    """Random seed."""
    protocol: Protocol = "cifar10"
    """Published split of CIFAR-10."""
    database_size: Count = 12_000
    """Number of database images, drawn from the protocol's."""
    train_size: Annotated[int, Bounds(ge=128)] = 5_000
    """Number of labelled training images, drawn from the protocol's."""
    teacher_size: Count = 128
    """Side to which images are enlarged for the teacher, pixels."""
    distill_epochs: Count = 8
    """Passes over the unlabelled images."""
    hash_epochs: Count = 3
    """Passes over the labelled images, the same for every student."""
    bits: Count = 64
    """Length of a code, bits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceConfig(Config):
    """A table of the paper: which trials are computed, and how much each may take."""

    budget: Literal["paper", "desktop", "smoke"] = "desktop"
    """paper (published settings, needs a GPU), desktop (hours of CPU) or smoke (a minute)."""
    protocol: Protocol = "cifar10"
    """Published split of CIFAR-10."""
    images: str | Path | None = None
    """Folder with train.txt, database.txt and test.txt. None: CIFAR-10."""
    arms: str | None = None
    """Baselines and the distilled student, separated by commas. None: the budget's."""
    frameworks: str | None = None
    """Hashing frameworks, separated by commas. None: csq,dch."""
    bits: str | None = None
    """Code lengths, separated by commas. None: the budget's."""
    seeds: str | None = None
    """Random seeds, separated by commas. None: the budget's."""
    shard: str = "1/1"
    """Part of the trials to compute: 2/3 is the second of three."""
    student: str | None = None
    """Student, v1 or v2. None: the budget's."""
    teacher: str | None = None
    """Teacher, such as torchvision/alexnet, which the published v2 has. None: the budget's."""
    precision: Precision | None = None
    """Of convolutions; weights stay in float32. None: the budget's."""
    split_seed: Seed = 0
    """Random seed of the split, which all other seeds share: differences are paired over its queries."""
    best_on_test: bool = False
    """Also report the best epoch on the queries, as the published code does; marked as optimistic."""


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON data (tuples become lists)."""
    data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return data


def from_dict(kind: type[T], data: dict[str, Any]) -> T:
    """The config of a kind from values by setting, as of as_dict; DistilhashError where one is not allowed."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown, fix = ", ".join(sorted(set(data) - known)), f"known: {', '.join(sorted(known))}"
    if unknown:
        raise DistilhashError(f"{kind.__name__} has no setting of this name", unknown, fix)
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits of SHA-256 over configs or JSON data: equal settings, equal fingerprint."""
    text = json.dumps([as_dict(p) if dataclasses.is_dataclass(p) else p for p in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
