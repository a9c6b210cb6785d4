"""Whole runs as functions: each returns the settings of every stage, typed, and runs nothing."""

from __future__ import annotations

import dataclasses

from distilhash.config import DemoConfig, DistillConfig, HashConfig, StudentConfig, TeacherConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages:
    """The settings of one run, stage by stage, and the arms that it compares."""

    teacher: TeacherConfig
    student: StudentConfig
    distill: DistillConfig
    hash: HashConfig
    arms: tuple[tuple[str, str], ...]  # (arm, framework)
    finetune: HashConfig | None = None  # of a teacher that is fine-tuned; left out: as for the students
    dch_batch_size: int | None = None  # where the frameworks differ

    def hashing(self, arm: str, framework: str, bits: int, seed: int) -> HashConfig:
        """The settings of the hasher of one arm."""
        config = self.finetune if self.finetune and arm == "teacher_finetuned" else self.hash
        batch_size = self.dch_batch_size if self.dch_batch_size and framework == "dch" else config.batch_size
        return dataclasses.replace(
            config, framework=framework, bits=bits, seed=seed, batch_size=batch_size,
            freeze_backbone=arm == "teacher_frozen",
        )  # fmt: skip


def demo_stages(config: DemoConfig) -> Stages:
    """The demonstration: a student at CIFAR-10's native 32 pixels and a teacher that pip can bring."""
    return Stages(
        teacher=TeacherConfig(name="pip/efficientnet_lite0", size=config.teacher_size),
        student=StudentConfig(name="v1", size=32, stem="small", crop_mode="pad", margin=0.1),
        distill=DistillConfig(epochs=config.distill_epochs, batch_size=256, seed=config.seed),
        hash=HashConfig(bits=config.bits, epochs=config.hash_epochs, batch_size=128, seed=config.seed),
        arms=(("distilled", "csq"), ("scratch", "csq"), ("teacher_frozen", "csq"), ("distilled", "dch")),
    )


def paper_cifar10() -> Stages:
    """The published settings on CIFAR-10: ResNet50 to v1 at 224 pixels, raw features, 160 epochs; a GPU's work."""
    return Stages(
        teacher=TeacherConfig(name="torchvision/resnet50"),
        student=StudentConfig(name="v1", size=224),
        distill=DistillConfig(
            loss="raw", optimizer="published", learning_rate=1e-4, weight_decay=0.0, epochs=160, batch_size=64,
            mode="online",
        ),
        hash=HashConfig(optimizer="published", learning_rate=1e-5, weight_decay=1e-5, epochs=30, batch_size=64),
        dch_batch_size=128,
        arms=(("distilled", "csq"), ("distilled", "dch"), ("teacher_finetuned", "csq"), ("teacher_finetuned", "dch")),
    )  # fmt: skip


def paper_nuswide() -> Stages:
    """The published settings on NUS-WIDE: as on CIFAR-10, but 120 epochs of distillation at 3e-6."""
    paper = paper_cifar10()
    return dataclasses.replace(paper, distill=dataclasses.replace(paper.distill, epochs=120, learning_rate=3e-6))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """A table of the paper: the settings of its cells and which of them are computed by default."""

    stages: Stages
    bits: tuple[int, ...] = (16, 32, 48, 64)
    seeds: tuple[int, ...] = (0, 1, 2)
    main_bits: int = 64  # the length that is computed for every seed; the others for the first one
    repeated_finetuning: bool = False  # the fine-tuned teacher for every seed, too
    measure_every: int = 1  # epochs between two measurements on the validation slice
    query_size: int | None = None  # images kept of each part; None: all
    train_size: int | None = None
    database_size: int | None = None


def desktop() -> Matrix:
    """The whole protocol at a size that two cores compute in hours: the demonstration's networks."""
    demo = demo_stages(DemoConfig())
    stages = dataclasses.replace(
        demo,
        distill=dataclasses.replace(demo.distill, epochs=16, views=2),
        hash=dataclasses.replace(demo.hash, epochs=6),
        finetune=dataclasses.replace(demo.hash, epochs=2, batch_size=64),  # for the time that it takes
    )
    return Matrix(stages=stages)


def desktop_photos() -> Matrix:
    """The same with a student at 64 pixels: photographs hold more than 32 pixels show."""
    matrix = desktop()
    student = dataclasses.replace(matrix.stages.student, size=64)
    return dataclasses.replace(matrix, stages=dataclasses.replace(matrix.stages, student=student))


def smoke() -> Matrix:
    """Every stage of every arm on a few hundred images, in a minute: numbers that mean nothing.

    In float32, so that two runs are equal to the last digit: "auto" may choose otherwise the next time.
    """
    stages = desktop().stages
    assert stages.finetune
    return Matrix(
        stages=dataclasses.replace(
            stages,
            teacher=dataclasses.replace(stages.teacher, size=32),
            distill=dataclasses.replace(stages.distill, epochs=1, batch_size=32, prototypes=16, precision="float32"),
            hash=dataclasses.replace(stages.hash, epochs=2, batch_size=32, precision="float32"),
            finetune=dataclasses.replace(stages.finetune, epochs=1, batch_size=32, precision="float32"),
        ),
        bits=(16, 64), seeds=(0, 1), query_size=60, train_size=200, database_size=400,
    )  # fmt: skip


def paper(stages: Stages) -> Matrix:
    """The published settings, every cell for every seed; the validation slice is looked at as often as published."""
    return Matrix(stages=stages, repeated_finetuning=True, measure_every=5)


# table -> budget -> its matrix
TABLES = {
    "cifar10": {"paper": lambda: paper(paper_cifar10()), "desktop": desktop, "smoke": smoke},
    "nuswide": {"paper": lambda: paper(paper_nuswide()), "desktop": desktop_photos, "smoke": smoke},
}
PRESETS = {"demo": lambda: demo_stages(DemoConfig()), "paper_cifar10": paper_cifar10, "paper_nuswide": paper_nuswide}
