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


def demo_stages(config: DemoConfig) -> Stages:
    """The demonstration: a student at CIFAR-10's native 32 pixels and a teacher that pip can bring."""
    return Stages(
        teacher=TeacherConfig(name="pip/efficientnet_lite0", size=config.teacher_size),
        student=StudentConfig(name="v1", size=32, stem="small", framing="pad", margin=0.1),
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
            loss="raw", optimiser="published", learning_rate=1e-4, weight_decay=0.0, epochs=160, batch_size=64,
            mode="online",
        ),
        hash=HashConfig(optimiser="published", learning_rate=1e-5, weight_decay=1e-5, epochs=30, batch_size=64),
        arms=(("distilled", "csq"), ("distilled", "dch"), ("teacher_finetuned", "csq"), ("teacher_finetuned", "dch")),
    )  # fmt: skip


def paper_nuswide() -> Stages:
    """The published settings on NUS-WIDE: as on CIFAR-10, but 120 epochs of distillation at 3e-6."""
    paper = paper_cifar10()
    return dataclasses.replace(paper, distill=dataclasses.replace(paper.distill, epochs=120, learning_rate=3e-6))


PRESETS = {"demo": lambda: demo_stages(DemoConfig()), "paper_cifar10": paper_cifar10, "paper_nuswide": paper_nuswide}
