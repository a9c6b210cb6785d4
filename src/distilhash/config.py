"""The settings of every stage, as frozen dataclasses: a sentence and a unit for each field.

A config is plain data: it is what ``config.json`` of a run holds, and what a fingerprint is taken of. Functions of
arrays (losses, metrics, codes, indexes) never see one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
from typing import Any, TypeVar

from distilhash.errors import DistilhashError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

T = TypeVar("T")

_BOUNDS = {"least": (operator.ge, "at least"), "above": (operator.gt, "above"), "below": (operator.lt, "below")}
_SEEDS = {"least": 0, "below": 2**63}  # what every generator takes


def setting(default: T, text: str, **bounds: float) -> T:
    """A field with its sentence and unit, which ``--help`` shows, and the bounds of its number.

    ``least`` is allowed itself, ``above`` and ``below`` are not.
    """
    return dataclasses.field(default=default, metadata={"help": text, "bounds": bounds})


class Bounded:
    """What every config shares: a number outside the bounds of its setting is refused where the config is made."""

    def __post_init__(self) -> None:
        """DistilhashError names the setting, its bound and its meaning; None stands for a choice made elsewhere."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            for bound, limit in field.metadata["bounds"].items():
                holds, words = _BOUNDS[bound]
                if value is not None and not (math.isfinite(value) and holds(value, limit)):
                    stage, name = type(self).__name__.removesuffix("Config").lower(), field.name.replace("_", " ")
                    text = field.metadata["help"]
                    raise DistilhashError(
                        f"{stage} {name} must be {words} {limit}", value, f"it is: {text[0].lower()}{text[1:]}"
                    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputConfig(Bounded):
    """What a network expects of an image: the whole of its preprocessing."""

    size: int = setting(224, "Side of the square that enters the network, pixels")
    mean: tuple[float, float, float] = setting(IMAGENET_MEAN, "Subtracted from RGB in [0, 1]")
    std: tuple[float, float, float] = setting(IMAGENET_STD, "Divides what is left")
    interpolation: str = setting("bilinear", '"bilinear" or "bicubic", both antialiased')
    crop_mode: str = setting(
        "crop", '"crop": a window of (1 - margin) of the image; "pad": the whole image, shifted by reflection'
    )
    margin: float = setting(
        0.125, '"crop": share of the image outside the window; "pad": largest shift as a share of the side'
    )

    def with_crop_of(self, other: InputConfig) -> InputConfig:
        """This input with the other's crop_mode and margin, so that both networks see the same part of an image."""
        return dataclasses.replace(self, crop_mode=other.crop_mode, margin=other.margin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig(Bounded):
    """A frozen network whose features are the target of distillation."""

    name: str = setting("pip/efficientnet_lite0", '"torchvision/NAME", "timm/NAME" or "pip/efficientnet_lite0|1|2"')
    weights: str | None = setting(
        None, "A state dict on disk (.safetensors, or .pth read with weights_only); left out: pretrained"
    )
    size: int | None = setting(None, "Input side, pixels; left out: the teacher's own", least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig(Bounded):
    """A compact network (the published blocks at a chosen input size)."""

    name: str = setting("v1", '"v1" or "v2"')
    size: int = setting(224, "Input side, pixels", least=1)
    stem: str = setting("published", '"published" (7x7/2 and pooling), or "small" or "tiny" for 32 to 64 pixels')
    crop_mode: str = setting("crop", '"crop": a window of the image (published); "pad": the whole image, shifted')
    margin: float = setting(
        0.125, "Share of the side that the window leaves out, or the largest shift", least=0, below=0.5
    )


# The default student of ``fit``: chosen by training time, as its maps begin with 16 pixels a side instead of 56.
PHOTO_STUDENT = StudentConfig(size=64, stem="small")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(Bounded):
    """Label-free distillation of a frozen teacher into a student."""

    loss: str = setting("prototypes", '"raw" (the paper), "standardised" or "prototypes"; see training/targets.py')
    epochs: int = setting(8, "Passes over the unlabelled images, count", least=1)
    batch_size: int = setting(128, "Images a step, count", least=1)
    optimizer: str = setting("muon", '"muon" or "adamw" (one cycle of the rate), or "published" (Adam, constant rate)')
    learning_rate: float = setting(2e-3, "Peak rate of AdamW, or the rate of the published Adam", above=0)
    muon_lr: float = setting(0.02, "Peak rate of Muon on convolution kernels", above=0)
    weight_decay: float = setting(
        0.02, "Decoupled, on kernels and matrices only; with published Adam on every weight", least=0
    )
    prototypes: int = setting(256, "Prototypes of the teacher's features, count (fewer where images are few)", least=2)
    temperature: float = setting(0.1, "Of the soft assignment to prototypes, in units of cosine", above=0)
    views: int = setting(1, "Views of each image in the feature cache (the first is the image itself), count", least=1)
    mode: str = setting("cached", '"cached": teacher features once, before; "online": the teacher runs in every step')
    precision: str = setting(
        "auto", '"float32", "bfloat16" (teacher and student; weights stay in float32), or "auto": the faster one here'
    )
    validation_size: int = setting(
        500, "Unlabelled images kept out of training, to measure agreement on, count", least=11
    )
    seed: int = setting(0, "Of the initial weights, the views and the order of images", **_SEEDS)
    checkpoint_seconds: float = setting(
        30.0, "Least time between two saved states, seconds; 0 saves every step", least=0
    )

    @property
    def cached_views(self) -> int:
        """Views in the feature cache: a teacher that runs in every step leaves there the images themselves."""
        return self.views if self.mode == "cached" else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashConfig(Bounded):
    """Supervised hashing of a backbone."""

    framework: str = setting("csq", '"csq" (Central Similarity Quantization) or "dch" (Deep Cauchy Hashing)')
    bits: int = setting(64, "Length of a code, bits", least=1)
    epochs: int = setting(6, "Passes over the labelled training images, count", least=1)
    batch_size: int = setting(64, "Images a step, count", least=1)
    optimizer: str = setting("muon", '"muon" or "adamw" (one cycle), or "published" (RMSprop, constant rate)')
    learning_rate: float = setting(2e-3, "Peak rate of AdamW, or the rate of the published RMSprop", above=0)
    muon_lr: float | None = setting(
        None, "Peak rate of Muon on convolution kernels; left out: 0.05, or 0.002 where they have learned already",
        above=0,
    )  # fmt: skip
    weight_decay: float = setting(
        0.02, "Decoupled, on kernels and matrices only; with published RMSprop on every weight", least=0
    )
    gamma: float = setting(20.0, "DCH: scale of the Cauchy distribution, in units of Hamming distance", above=0)
    quantization_weight: float | None = setting(
        None, "Lambda; left out: the published 1e-4 for CSQ and 0.1 for DCH", least=0
    )
    centres: str = setting("auto", 'CSQ: "auto" (Hadamard where it exists), "hadamard", "spread" or "bernoulli"')
    freeze_backbone: bool = setting(False, "Train only the head")
    precision: str = setting("auto", '"float32", "bfloat16" (weights stay in float32), or "auto": the faster one here')
    seed: int = setting(0, "Of the head's initial weights, the centres, the views and the order of images", **_SEEDS)
    checkpoint_seconds: float = setting(
        30.0, "Least time between two saved states, seconds; 0 saves every step", least=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig(Bounded):
    """A hasher of photos that nobody labelled: a student distilled on them, then hashed without labels."""

    method: str = setting(
        "auto",
        '"itq" (principal components, rotated), "pseudo" (CSQ on clusters of the teacher\'s features), or "auto": itq',
    )
    bits: int = setting(64, "Length of a code, bits", least=1)
    epochs: int | None = setting(
        None, "Passes over the photos in distillation, count; left out: 40,000 photos' worth, from 8 to 40", least=1
    )
    views: int = setting(2, "Views of each photo that the teacher sees (the first is the photo itself), count", least=1)
    batch_size: int = setting(64, "Photos a step, count", least=1)
    clusters: int = setting(16, '"pseudo": clusters, count (fewer where photos are few)', least=2)
    hash_epochs: int = setting(3, '"pseudo": passes over the photos in hashing, count', least=1)
    precision: str = setting("auto", '"float32", "bfloat16" (weights stay in float32), or "auto": the faster one here')
    seed: int = setting(0, "Of the initial weights, the views, the order of photos and the rotation", **_SEEDS)
    checkpoint_seconds: float = setting(
        30.0, "Least time between two saved states, seconds; 0 saves every step", least=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Bounded):
    """A hasher written as ONNX, and compared with what it was made from."""

    calibration_images: int = setting(
        256, "Images whose activations give the ranges of int8, drawn by the seed, count", least=1
    )
    compared_images: int = setting(1_000, "Further images whose codes are compared, count", least=1)
    database_images: int = setting(12_000, "Database images of the comparison of mAP, at most, count", least=1)
    seconds: float = setting(1.0, "Time spent on each timing, seconds", above=0)
    seed: int = setting(0, "Of the draws", **_SEEDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig(Bounded):
    """The demonstration on CIFAR-10: every arm of the paper's comparison, at a size that a laptop runs in minutes."""

    seed: int = setting(0, "Of the split, the initial weights, the views and the order of images", **_SEEDS)
    protocol: str = setting("cifar10", 'Published split: "cifar10", "cifar10-1" or "cifar10-2"')
    database_size: int = setting(12_000, "Database images kept of the protocol's, drawn by the seed, count", least=1)
    train_size: int = setting(5_000, "Labelled images kept of the protocol's, drawn by the seed, count", least=128)
    teacher_size: int = setting(128, "Side to which the teacher's input is enlarged, pixels", least=1)
    distill_epochs: int = setting(8, "Passes over the unlabelled images, count", least=1)
    hash_epochs: int = setting(3, "Passes over the labelled images, the same for every student, count", least=1)
    bits: int = setting(64, "Length of a code, bits", least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceConfig(Bounded):
    """A table of the paper: which of its cells are computed, and how much each may take."""

    budget: str = setting(
        "desktop", '"paper" (published settings, a GPU), "desktop" (hours of CPU) or "smoke" (a minute)'
    )
    protocol: str = setting("cifar10", 'CIFAR-10\'s split: "cifar10", "cifar10-1" or "cifar10-2"')
    images: str | None = setting(None, "Folder with train.txt, database.txt and test.txt; left out: CIFAR-10")
    arms: str | None = setting(None, "Arms, with commas; left out: the budget's")
    frameworks: str | None = setting(None, 'Hashing frameworks, with commas; left out: "csq,dch"')
    bits: str | None = setting(None, "Code lengths, with commas; left out: the budget's")
    seeds: str | None = setting(None, "Seeds, with commas; left out: the budget's")
    shard: str = setting("1/1", "Which part of the cells: 2/3 is the second of three")
    best_on_test: bool = setting(False, "Also the best epoch on the queries, as published; marked as such")


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON data (tuples become lists)."""
    data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return data


def from_dict(kind: type[T], data: dict[str, Any]) -> T:
    """The config of this kind from plain data; DistilhashError names a field that it does not have."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise DistilhashError(
            f"{kind.__name__} has no setting of this name", ", ".join(unknown), f"known: {', '.join(sorted(fields))}"
        )
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that name these settings: equal settings, equal fingerprint."""
    text = json.dumps([as_dict(p) if dataclasses.is_dataclass(p) else p for p in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
