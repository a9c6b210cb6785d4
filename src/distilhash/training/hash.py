"""Supervised hashing of a backbone: Deep Cauchy Hashing or Central Similarity Quantization.

DCH: Cao et al., CVPR 2018, equations 2 and 6 to 9. CSQ: Yuan et al., CVPR 2020, Algorithm 1 and L_C + L_Q. The
backbone is a distilled student, the same student from scratch, a teacher that is fine-tuned, or a frozen one of which
only the head is trained. Nothing is chosen on query images: the last epoch is what is kept.

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
from distilhash.losses import csq_loss, dch_loss, hash_centres, multi_label_centres
from distilhash.models import STUDENTS, TEACHERS, Backbone, Hasher, is_teacher, new_student, open_teacher
from distilhash.progress import progress
from distilhash.training.optim import Optimizers
from distilhash.training.run import RunDirectory, no_losses

QUANTIZATION_WEIGHTS = {"csq": 1e-4, "dch": 0.1}  # lambda, as published
# Of Muon, by whether the backbone is pretrained: at the first rate a distilled student would lose much of what it was
# taught, and a few labels do not bring it back (benchmarks/hash_rates.py).
MUON_LRS = {False: 0.05, True: 0.002}


def train_hasher(
    images: ImageSource, indices: np.ndarray, hasher: Hasher, config: HashConfig, run: RunDirectory, *,
    features_ND: np.ndarray | None = None, measure: Callable[[Hasher], dict[str, float]] | None = None, every: int = 1,
    about: dict[str, Any] | None = None,
) -> Hasher:  # fmt: skip
    """Train a hasher on labelled images.

    Args:
        images, indices: the source, and which of its images are trained on.
        hasher: trained in place; of a frozen backbone only the head.
        config: the settings.
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
    muon_lr = config.muon_lr or MUON_LRS[hasher.backbone.pretrained]
    config = dataclasses.replace(config, muon_lr=muon_lr)
    device = current()
    loss_of = _loss(one_hot(np.asarray(images.labels), _count_classes(images))[indices], config, device)
    network: nn.Module = hasher
    if hasher.freeze_backbone:
        network = nn.Sequential(nn.ReLU(), hasher.head)  # what a hasher does after its backbone
    network.to(device).to(memory_format=torch.channels_last).train()

    batches = Batches(count=len(indices), batch_size=config.batch_size, seed=config.seed)
    steps = config.epochs * batches.steps
    precision = "float32"  # in which a head alone is fastest
    if not hasher.freeze_backbone:
        shape_N3SS = (config.batch_size, 3, hasher.input.size, hasher.input.size)
        precision = settled_precision(config.precision, run.path / "precision.json", network, shape_N3SS)
    stage = f"hash {config.framework} {config.bits} bits"
    optimizers = Optimizers(
        {"network": network}, config.optimizer, steps, stage=stage, precision=precision,
        published=torch.optim.RMSprop, rate=config.learning_rate, muon_lr=muon_lr, weight_decay=config.weight_decay,
    )  # fmt: skip
    losses_2 = no_losses()
    step = run.restore(optimizers, losses_2)
    hasher.precision = precision  # in which it is measured between epochs, too
    description = {
        "kind": "hasher", "architecture": hasher.backbone.architecture, "bits": config.bits,
        "images": images.fingerprint, "labelled_images": len(indices), "indices": fingerprint_of_indices(indices),
        "precision": precision, "device": str(device), "settings": as_dict(config), **(about or {}),
    }  # fmt: skip

    before = [] if hasher.backbone.seen is None else [hasher.backbone.seen]
    hasher.seen = np.concatenate([*before, images.digests[indices]])
    load = _loader(images, indices, batches, hasher, features_ND, config.seed)
    with progress(stage, steps * config.batch_size, done=step * config.batch_size) as shown:
        for inputs, rows_N in prefetch(load, range(step, steps), **readers(shared=device.type != "cpu")):
            with arithmetic(precision):
                outputs_NK = network(inputs)
            loss = loss_of(outputs_NK.float(), rows_N)
            value = optimizers.step(loss, step)
            step += 1
            losses_2 += torch.tensor([value, 1])
            shown.add(config.batch_size, loss=value)
            if step % batches.steps == 0:
                optimizers.check(step)
                epoch = step // batches.steps
                measured = measure(hasher) if measure and (epoch % every == 0 or step == steps) else {}
                network.train()
                if measured and _is_best(measured, run):
                    save_model(run.path / "chosen", hasher, description | {"epoch": epoch})
                run.record_epoch(stage, step, epoch, losses_2, measured)
            run.save_if_due(optimizers, losses_2, step, config.checkpoint_seconds)

    save_model(run.path / "model", hasher, description)
    run.drop_state()
    return hasher.eval()


def check(images: ImageSource, indices: np.ndarray, config: HashConfig) -> None:
    """Refuse what cannot be run on these training images, before anything is computed or written.

    Raises:
        DistilhashError: an unknown framework, a device that is not there, no labels, labels that tell no two images
            apart, too few images, or a code length for which there are no centres of the wanted kind.
    """
    if config.framework not in QUANTIZATION_WEIGHTS:
        raise unknown_name("hashing framework", config.framework, QUANTIZATION_WEIGHTS)
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
    if config.framework == "csq":
        hash_centres(_count_classes(images), config.bits, config.seed, kind=config.centres)


def open_backbone(name: str, student: StudentConfig, teacher: TeacherConfig, config: HashConfig) -> Backbone:
    """The backbone that a hasher is trained on.

    Args:
        name: a student ("v1": from scratch), a teacher ("timm/NAME": trainable unless ``config.freeze_backbone``), or
            the run directory of a distilled student.
        student, teacher: the other settings of a student from scratch, and of a teacher.
        config: of the hasher.

    Raises:
        DistilhashError: the name is none of these.
    """
    if name in STUDENTS:
        return new_student(dataclasses.replace(student, name=name), config.seed)
    if is_teacher(name):
        return open_teacher(dataclasses.replace(teacher, name=name), trainable=not config.freeze_backbone)
    if Path(name).exists():
        return load_student(name)[0]
    raise unknown_name("backbone", name, [*STUDENTS, *TEACHERS, "timm/NAME", "a distilled student's run directory"])


def _loader(
    images: ImageSource, indices: np.ndarray, batches: Batches, hasher: Hasher, features_ND: np.ndarray | None,
    seed: int,
) -> Callable[[int], tuple[Tensor, Tensor]]:  # fmt: skip
    """What loads a step: the network's inputs and the positions (N,) of their images in ``indices``."""
    device, pixels = current(), Preprocess(hasher.input)
    assert features_ND is not None or not hasher.freeze_backbone

    def load(step: int) -> tuple[Tensor, Tensor]:
        epoch, batch = divmod(step, batches.steps)
        rows_N = batches.positions(epoch, batch)
        if features_ND is not None:
            inputs = torch.from_numpy(np.array(features_ND[rows_N]))
        else:
            views = make_views(indices[rows_N], epoch, seed)  # every epoch flips and shifts anew
            inputs = pixels.tensor(pixels.read(images, indices[rows_N], views))
        return sent(inputs, device), sent(torch.tensor(rows_N), device)

    return load


def _is_best(measured: dict[str, float], run: RunDirectory) -> bool:
    """Whether the first of these numbers is above that of every epoch so far."""
    name, value = next(iter(measured.items()))
    return all(value > line[name] for line in RunDirectory.metrics_in(run.path) if name in line)


def _loss(labels_NC: np.ndarray, config: HashConfig, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The framework's loss as a function of outputs (N, K) and the rows of their images."""
    published = QUANTIZATION_WEIGHTS[config.framework]
    weight = published if config.quantization_weight is None else config.quantization_weight
    if config.framework == "dch":
        targets_NC = torch.from_numpy(labels_NC.astype(np.float32)).to(device)
        return lambda outputs, rows: dch_loss(outputs, targets_NC[rows], config.gamma, weight)
    if config.framework == "csq":
        centres_CK = hash_centres(labels_NC.shape[1], config.bits, config.seed, kind=config.centres)
        centres_NK = torch.from_numpy(multi_label_centres(labels_NC, centres_CK, config.seed)).to(device)
        return lambda outputs, rows: csq_loss(outputs, centres_NK[rows], weight)
    raise AssertionError(f"a hashing framework without its loss: {config.framework}")


def _count_classes(images: ImageSource) -> int:
    labels = np.asarray(images.labels)
    # A class may have a name and no image; or the classes have no names.
    return labels.shape[1] if labels.ndim == 2 else max(len(images.class_names), int(labels.max()) + 1)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels as (N, C) 0/1: single-class labels (N,) are spread, multi-label ones pass."""
    return labels if labels.ndim == 2 else np.eye(classes, dtype=np.uint8)[labels]
