"""Supervised hashing of a backbone, by a framework of ``losses``.

The backbone is a distilled student, the same student from scratch, a teacher that is fine-tuned, or a frozen one of
which only the head is trained. Nothing is chosen on query images: the last epoch is what is kept.

Legend: N images of a batch, C classes, D features, K bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distilhash.checkpoint import load_student, save_model
from distilhash.config import HashConfig, StudentConfig, TeacherConfig, as_dict
from distilhash.data.order import Batches
from distilhash.data.prefetch import prefetch, readers
from distilhash.data.sources import ImageSource
from distilhash.data.transforms import Preprocess, make_views
from distilhash.device import arithmetic, current, sent, settled_precision
from distilhash.errors import DistilhashError, unknown_name
from distilhash.files import fingerprint_of_indices
from distilhash.losses import create_loss
from distilhash.models import (
    STUDENTS,
    TEACHERS,
    Backbone,
    HasherNetwork,
    is_student,
    is_teacher,
    new_student,
    open_teacher,
)
from distilhash.models.registry import builder_of
from distilhash.progress import progress
from distilhash.training.optim import Optimizers
from distilhash.training.run import RunDirectory

# Of Muon, by whether the backbone is pretrained: at the first rate a distilled student would lose much of what it was
# taught, and a few labels do not bring it back (benchmarks/tune.py).
MUON_LRS = {False: 0.05, True: 0.002}


def train_hasher(
    images: ImageSource, indices: np.ndarray, hasher: HasherNetwork, config: HashConfig, run: RunDirectory, *,
    features_ND: np.ndarray | None = None, measure: Callable[[HasherNetwork], dict[str, float]] | None = None,
    every: int = 1, about: dict[str, Any] | None = None,
) -> HasherNetwork:  # fmt: skip
    """Train a hasher on labelled images.

    Args:
        images, indices: the source, and which of its images are trained on.
        hasher: trained in place; of a frozen backbone only the head.
        run: where the hasher of the last epoch is written, in ``model/``. A run with a saved state is continued, and
            ends in the same weights.
        features_ND: what a frozen backbone gives for ``indices``; then no image is read.
        measure: numbers of a hasher on a validation set. The hasher of the epoch where the first of them is highest is
            kept in ``chosen/``.
        every: epochs between two calls of ``measure``; after the last epoch it is called, too.
        about: added to the checkpoint's description.

    Returns:
        The hasher, in eval mode.

    Raises:
        DistilhashError: what ``check`` refuses.
    """
    check(images, indices, config)
    config = dataclasses.replace(config, muon_lr=config.muon_lr or MUON_LRS[hasher.backbone.pretrained])
    device, pixels, seed = current(), Preprocess(hasher.input), config.seed
    labels_NC = torch.from_numpy(_labels(images, indices)).to(device)
    loss_of = create_loss(labels_NC, config)
    network: nn.Module = hasher
    precision = "float32"  # in which a head alone is fastest
    if hasher.freeze_backbone:
        assert features_ND is not None
        network = nn.Sequential(nn.ReLU(), hasher.head)  # what a hasher does after its backbone
    network.to(device).to(memory_format=torch.channels_last).train()
    if not hasher.freeze_backbone:
        shape_N3SS = (config.batch_size, 3, hasher.input.size, hasher.input.size)
        precision = settled_precision(config.precision, run.path / "precision.json", network, shape_N3SS)
    hasher.precision = precision  # in which it is measured between epochs, too
    modules = {"network": network}
    if isinstance(loss_of, nn.Module):
        modules["loss"] = loss_of.to(device)
    batches = Batches(count=len(indices), batch_size=config.batch_size, seed=seed)
    stage, steps = f"hash {config.framework} {config.bits} bits", config.epochs * batches.steps
    optimizers = Optimizers(modules, config, steps, stage, precision, torch.optim.RMSprop)
    step = run.restore(optimizers)
    description = {
        "kind": "hasher", "architecture": hasher.backbone.architecture, "bits": config.bits,
        "images": images.fingerprint, "labelled_images": len(indices), "indices": fingerprint_of_indices(indices),
        "precision": precision, "device": str(device), "settings": as_dict(config),
        **hasher.backbone.origin, **(about or {}),
    }  # fmt: skip
    before = [] if hasher.backbone.seen is None else [hasher.backbone.seen]
    hasher.seen = np.concatenate([*before, images.digests[indices]])

    def load(step: int) -> tuple[Tensor, Tensor]:
        """The network's inputs, and the positions (N,) of their images in ``indices``."""
        epoch, batch = divmod(step, batches.steps)
        rows_N = batches.positions(epoch, batch)
        if features_ND is not None:
            inputs = torch.from_numpy(np.array(features_ND[rows_N]))
        else:
            views = None if config.unaugmented else make_views(indices[rows_N], epoch, seed)
            inputs = pixels.tensor(pixels.read(images, indices[rows_N], views))
        return sent(inputs, device), sent(torch.tensor(rows_N), device)

    with progress(stage, steps * config.batch_size, done=step * config.batch_size) as shown:
        for inputs, rows_N in prefetch(load, range(step, steps), **readers(shared=device.type != "cpu")):
            with arithmetic(precision):
                outputs_NK = network(inputs)
            loss = loss_of(outputs_NK.float(), labels_NC[rows_N], rows_N)
            shown.add(config.batch_size, loss=optimizers.step(loss, step))
            step += 1
            if step % batches.steps == 0:
                optimizers.check(step)
                epoch = step // batches.steps
                measured = measure(hasher) if measure and (epoch % every == 0 or step == steps) else {}
                network.train()
                if measured and _is_best(measured, run):
                    save_model(run.path / "chosen", hasher, description | {"epoch": epoch})
                run.record_epoch(optimizers, step, epoch, measured)
            run.save_if_due(optimizers, step, config.checkpoint_seconds)

    save_model(run.path / "model", hasher, description)
    run.drop_state()
    return hasher.eval()


def check(images: ImageSource, indices: np.ndarray, config: HashConfig) -> None:
    """Refuse what cannot be run on these training images, before anything is computed or written."""
    current()
    if images.labels is None:
        raise DistilhashError("hashing needs labels", "images without labels", "give class subfolders or list files")
    if len(indices) < config.batch_size:
        got = f"{len(indices)} with batches of {config.batch_size}"
        raise DistilhashError("too few labelled images to hash on", got, "give more images or a smaller --batch-size")
    labels = np.asarray(images.labels)[indices]
    if len(np.unique(labels, axis=0)) < 2:
        got = f"{len(indices):,} training images, all of one class"
        if labels.ndim == 2:
            got = f"{len(indices):,} training images, all with {'the same' if labels.any() else 'no'} labels"
        raise DistilhashError("hashing learns from labels that differ", got, "give images of two classes or more")
    create_loss(torch.from_numpy(_labels(images, indices)), config)


def open_backbone(name: str | None, student: StudentConfig, teacher: TeacherConfig, config: HashConfig) -> Backbone:
    """The backbone that a hasher is trained on.

    Args:
        name: a student ("v1": from scratch; None: the one of ``student``), a teacher ("timm/NAME": trainable unless
            ``config.freeze_backbone``), or the run directory of a distilled student.
        student, teacher: the other settings of a student from scratch, and of a teacher.
    """
    builder_of(student.name, trusted=True)  # the user names a file that a distilled student may need
    if name is None or is_student(name):
        return new_student(dataclasses.replace(student, name=name or student.name), config.seed)
    if is_teacher(name):
        return open_teacher(dataclasses.replace(teacher, name=name), trainable=not config.freeze_backbone)
    if Path(name).exists():
        return load_student(name)[0]
    raise unknown_name("backbone", name, [*STUDENTS, *TEACHERS, "timm/NAME", "a distilled student's run directory"])


def _is_best(measured: dict[str, float], run: RunDirectory) -> bool:
    """Whether the first of these numbers is above that of every epoch so far."""
    name, value = next(iter(measured.items()))
    return all(value > line[name] for line in RunDirectory.metrics_in(run.path) if name in line)


def _labels(images: ImageSource, indices: np.ndarray) -> np.ndarray:
    """Labels of these images as (N, C) 0/1; single-class labels are spread."""
    labels = np.asarray(images.labels)
    if labels.ndim == 1:
        # A class may have a name and no image; or the classes have no names.
        labels = np.eye(max(len(images.class_names), int(labels.max()) + 1), dtype=np.uint8)[labels]
    found: np.ndarray = labels[indices]
    return found
