"""A hasher: a backbone, a ReLU and one linear layer, whose signs are the code.

The head is that of the published code (satoru2001/CUKDFIR at d9a60ee; network.py), for any backbone; its checkpoints
load here. The outputs are real numbers: the losses take them as they are, a code takes their sign.

Shapes: N images, S pixels, D features, K bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilhash.config import HashConfig, InputConfig, as_dict, from_dict
from distilhash.errors import DistilhashError, unknown_name
from distilhash.models.backbone import Backbone, load_checked, read_state
from distilhash.models.student import STUDENTS, create_student, is_student
from distilhash.models.teacher import Teacher, create_teacher, rebuild_teacher

PUBLISHED_HEADS = ("binary", "binary_new")  # v1's and v2's names of the hash layer


class HasherNetwork(nn.Module):
    """Backbone and hash head; forward gives outputs (N, K) before tanh and sign.

    A frozen backbone stays in eval mode and out of the gradient, also after train(); a frozen Teacher is one by itself.
    """

    def __init__(self, backbone: Backbone, num_bits: int, freeze_backbone: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.feature_dim, num_bits)
        self.num_bits = num_bits
        self.seen = backbone.seen if isinstance(backbone, Backbone) else None  # as of a Backbone
        self.precision = "float32"  # of its training, in which it encodes, too, where the device has it
        self.freeze_backbone = freeze_backbone or (isinstance(backbone, Teacher) and not backbone.trainable)
        if self.freeze_backbone:
            backbone.requires_grad_(False)
        self.train(self.training)

    @property
    def input(self) -> InputConfig:
        """What the backbone expects of an image."""
        return self.backbone.input

    def train(self, mode: bool = True) -> HasherNetwork:
        """As in torch, but the BatchNorm statistics of a frozen backbone do not move."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def forward(self, images_N3SS: Tensor) -> Tensor:
        """Outputs (N, K) of images that were preprocessed as self.input says."""
        outputs_NK: Tensor = self.head(F.relu(self.backbone(images_N3SS)))
        return outputs_NK


def create_hasher(backbone: str | nn.Module, num_bits: int = 48, freeze_backbone: bool = False) -> HasherNetwork:
    """A hasher with a random head.

    Args:
        backbone: a module, or the name of a student or a teacher; a named teacher is trainable unless frozen here.
        num_bits: length of a code.
        freeze_backbone: only the head is trained.

    Raises:
        DistilhashError: an unknown name, a module that is no Backbone, or no positive number of bits.
    """
    if not isinstance(num_bits, int) or num_bits < 1:
        raise DistilhashError("a code has a positive whole number of bits", repr(num_bits))
    if isinstance(backbone, str):
        if is_student(backbone):
            backbone = create_student(backbone)
        elif "/" in backbone:
            backbone = create_teacher(backbone, trainable=not freeze_backbone)
        else:
            raise unknown_name("backbone", backbone, [*STUDENTS, "a teacher's name, such as torchvision/resnet50"])
    lacking = [name for name in ("feature_dim", "input", "name", "architecture") if not hasattr(backbone, name)]
    if lacking:
        raise DistilhashError(
            "a backbone has the attributes of distilhash.models.Backbone",
            f"{type(backbone).__name__} without {', '.join(lacking)}",
        )
    return HasherNetwork(cast(Backbone, backbone), num_bits, freeze_backbone)


def new_hasher(backbone: Backbone, config: HashConfig) -> HasherNetwork:
    """A hasher on a backbone, which from then on crops by ``config.margin``; its head is initialised by the seed."""
    if config.margin is not None:
        backbone.input = dataclasses.replace(backbone.input, margin=config.margin)
        backbone.architecture["input"] = as_dict(backbone.input)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 2)
        hasher = create_hasher(backbone, num_bits=config.bits, freeze_backbone=config.freeze_backbone)
        if config.head_std is not None:
            nn.init.normal_(hasher.head.weight, std=config.head_std)
            nn.init.zeros_(hasher.head.bias)
        return hasher


def rebuild_backbone(architecture: Mapping[str, Any]) -> Backbone:
    """The backbone that has this .architecture, with fresh weights: nothing is downloaded, a checkpoint fills it."""
    kind = architecture.get("kind")
    try:
        if kind == "student":
            name, size = architecture["name"], architecture["size"]
            stem = architecture["stem"] if name in STUDENTS else "published"
            input = from_dict(InputConfig, architecture["input"])
            return create_student(name, size, stem, input=input, trusted=False)
        if kind == "teacher":
            return rebuild_teacher(architecture)
    except KeyError as error:
        raise DistilhashError(f"the architecture of this {kind} is incomplete", f"no {error.args[0]!r}") from error
    raise unknown_name("kind of backbone", str(kind), ("student", "teacher"))


def load_published_student(
    source: str | Path | Mapping[str, Tensor], num_bits: int | None = None
) -> Backbone | HasherNetwork:
    """The network of a checkpoint of the published code; v1 and v2 are told apart by the width of their last stage.

    The stray layer "fc" of distilled checkpoints is dropped, and so is the prefix "module." of parallel training.

    Args:
        source: the file or its state dict.
        num_bits: of the hash layer; of a checkpoint without one it asks for a random head.

    Returns:
        A HasherNetwork where there is a hash layer or ``num_bits`` is given, else a Student.

    Raises:
        DistilhashError: the tensors are not those of a published student, or codes have another length.
    """
    state = dict(source) if isinstance(source, Mapping) else read_state(source)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    heads = [name for name in state if name.rpartition(".")[0] in PUBLISHED_HEADS]
    head = {name.rpartition(".")[2]: state.pop(name) for name in heads}

    width = state["layer5.0.conv1.weight"].shape[:1] if "layer5.0.conv1.weight" in state else ()
    name = next((name for name, widths in STUDENTS.items() if widths[-1:] == width), "v1")
    student = create_student(name)
    load_checked(student, state, f"the published student {name}")
    if not head and num_bits is None:
        return student
    own = 1 if num_bits is None else num_bits
    if "weight" in head and head["weight"].ndim:
        own = len(head["weight"])
    if num_bits not in (None, own):
        raise DistilhashError("the checkpoint's codes have another length", f"{own} bits in it, {num_bits} asked for")
    hasher = create_hasher(student, own)
    if head:
        load_checked(hasher.head, head, f"a hash layer of the published student {name}")
    return hasher
