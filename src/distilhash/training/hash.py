"""Supervised hashing of a backbone: Deep Cauchy Hashing or Central Similarity Quantization.

DCH: Cao et al., CVPR 2018, equations 2 and 6 to 9. CSQ: Yuan et al., CVPR 2020, Algorithm 1 and L_C + L_Q. The
backbone is a distilled student, the same student from scratch, a teacher that is fine-tuned, or a frozen one of which
only the head is trained. Nothing is chosen on query images: the last epoch is what is kept.

Legend: N images of a batch, C classes, K bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distilhash.checkpoint import save_model
from distilhash.config import HashConfig, as_dict
from distilhash.data.order import Batches
from distilhash.data.prefetch import prefetch, readers
from distilhash.data.sources import ImageSource
from distilhash.data.transforms import Preprocess, make_views
from distilhash.device import PRECISIONS, arithmetic, current, sent, settled_precision
from distilhash.errors import DistilhashError, unknown_name
from distilhash.files import fingerprint_of_indices
from distilhash.losses import csq_loss, dch_loss, hash_centres, multi_label_centres
from distilhash.models.hasher import Hasher
from distilhash.training.optim import OPTIMIZERS, Optimizers
from distilhash.training.progress import Progress
from distilhash.training.run import RunDirectory

QUANTIZATION_WEIGHTS = {"csq": 1e-4, "dch": 0.1}  # lambda, as published
# Of Muon, by whether the backbone has learned already: at the first rate a distilled student would lose much of what it
# was taught, and a few labels do not bring it back (benchmarks/hash_rates.py).
MUON_LRS = {False: 0.05, True: 0.002}


def train_hasher(
    images: ImageSource,
    indices: np.ndarray,
    hasher: Hasher,
    config: HashConfig,
    run: RunDirectory,
    *,
    features_ND: np.ndarray | None = None,
    measure: Callable[[Hasher], dict[str, float]] | None = None,
    every: int = 1,
    about: dict[str, Any] | None = None,
) -> Hasher:
    """Train ``hasher`` on the labelled ``images[indices]`` and return it; write the run directory.

    Of a frozen backbone only the head is trained, on ``features_ND``, which it gave for ``indices``; no image is read.
    ``measure`` gives numbers of the hasher after ``every`` so many epochs and the last. The first of them chooses: the
    hasher of the epoch where it is highest is kept in ``chosen/``, the last one in ``model/``. ``about`` is added to
    the description of both. A run directory with a saved state is continued and ends in the same weights. Errors:
    DistilhashError.
    """
    check(images, len(indices), config)
    assert images.labels is not None
    muon_lr = config.muon_lr or MUON_LRS[hasher.backbone.pretrained]
    config = dataclasses.replace(config, muon_lr=muon_lr)
    where = current()
    loss_of = _loss(one_hot(images.labels, _count_classes(images))[indices], config, where)
    network: nn.Module = hasher
    if hasher.freeze_backbone:
        assert features_ND is not None
        network = nn.Sequential(nn.ReLU(), hasher.head)  # what a hasher does after its backbone
    network.to(where).to(memory_format=torch.channels_last)
    batches = Batches(count=len(indices), batch_size=config.batch_size, seed=config.seed)
    steps = config.epochs * batches.steps
    optimizers = Optimizers(
        {"network": network}, config.optimizer, steps, published=torch.optim.RMSprop, rate=config.learning_rate,
        muon_lr=muon_lr, weight_decay=config.weight_decay,
    )  # fmt: skip
    progress = Progress(
        run, f"hash {config.framework} {config.bits} bits", config.epochs, batches.steps, config.batch_size
    )
    step = progress.restore(optimizers)
    pixels = Preprocess(hasher.input)

    def load(number: int) -> tuple[Tensor, Tensor]:
        """For one step: the network's inputs and the positions of their images in ``indices``."""
        epoch, batch = divmod(number, batches.steps)
        rows = batches.positions(epoch, batch)  # read-only, which torch.from_numpy would warn of
        if hasher.freeze_backbone:
            assert features_ND is not None
            inputs = torch.from_numpy(np.array(features_ND[rows]))
            return sent(inputs, where), sent(torch.tensor(rows), where)
        views = make_views(indices[rows], epoch, config.seed)  # every epoch flips and shifts anew
        inputs = pixels.tensor(pixels.read(images, indices[rows], views))
        return sent(inputs, where), sent(torch.tensor(rows), where)

    network.train()
    precision, side = "float32", hasher.input.size  # which is what a head alone is fastest in
    if not hasher.freeze_backbone:
        shape_N3SS = (config.batch_size, 3, side, side)
        precision = settled_precision(config.precision, run.path / "precision.json", network, shape_N3SS)
    hasher.precision = precision  # in which it is measured between epochs, too
    description = {
        "kind": "hasher", "architecture": hasher.backbone.architecture, "bits": config.bits,
        "images": images.fingerprint, "labelled_images": len(indices), "indices": fingerprint_of_indices(indices),
        "precision": precision, "device": where.type, "settings": as_dict(config), **(about or {}),
    }  # fmt: skip
    for inputs, rows_N in prefetch(load, range(step, steps), **readers(shared=where.type != "cpu")):
        with arithmetic(precision):
            outputs_NK = network(inputs)
        loss = loss_of(outputs_NK.float(), rows_N)
        optimizers.step(loss, step)
        step += 1
        if progress.step(step, loss.item()):
            epoch = step // batches.steps
            measured = measure(hasher) if measure and (epoch % every == 0 or step == steps) else {}
            network.train()
            if measured and _is_best(measured, run):
                save_model(run.path / "chosen", hasher, description | {"epoch": epoch})
            progress.epoch(step, measured)
        progress.save_if_due(optimizers, step, config.checkpoint_seconds)

    save_model(run.path / "model", hasher, description)
    run.drop_state()
    return hasher.eval()


def check(images: ImageSource, count: int, config: HashConfig) -> None:
    """Refuse what cannot be run on ``count`` of these images, before anything is computed. Errors: DistilhashError."""
    if config.framework not in QUANTIZATION_WEIGHTS:
        raise unknown_name("hashing framework", config.framework, QUANTIZATION_WEIGHTS)
    if config.optimizer not in OPTIMIZERS:
        raise unknown_name("optimizer", config.optimizer, OPTIMIZERS)
    if config.precision not in PRECISIONS:
        raise unknown_name("precision", config.precision, PRECISIONS)
    current()  # a device that is not there is found now, not when a directory has been deleted for this run
    if images.labels is None:
        raise DistilhashError("hashing needs labels", "images without labels", "give class subfolders or list files")
    if count < config.batch_size:
        raise DistilhashError(
            "too few labelled images to hash on",
            f"{count} with batches of {config.batch_size}",
            "give more images or a smaller --batch-size",
        )
    if config.framework == "csq":  # not every length has centres of every kind
        hash_centres(_count_classes(images), config.bits, config.seed, kind=config.centres)


def _is_best(measured: dict[str, float], run: RunDirectory) -> bool:
    """Is the first of these numbers above that of every epoch so far?"""
    name, value = next(iter(measured.items()))
    return all(value > line[name] for line in run.metrics() if name in line)


def _loss(labels_NC: np.ndarray, config: HashConfig, where: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The framework's loss as a function of outputs (N, K) and the rows of their images."""
    weight = config.quantization_weight
    if weight is None:
        weight = QUANTIZATION_WEIGHTS[config.framework]
    if config.framework == "dch":
        targets_NC = torch.from_numpy(labels_NC.astype(np.float32)).to(where)
        return lambda outputs, rows: dch_loss(outputs, targets_NC[rows], config.gamma, weight)
    centres_CK = hash_centres(labels_NC.shape[1], config.bits, config.seed, kind=config.centres)
    centres_NK = torch.from_numpy(multi_label_centres(labels_NC, centres_CK, config.seed)).to(where)
    return lambda outputs, rows: csq_loss(outputs, centres_NK[rows], weight)


def _count_classes(images: ImageSource) -> int:
    labels = np.asarray(images.labels)
    # A class may have a name and no image; or the classes have no names.
    return labels.shape[1] if labels.ndim == 2 else max(len(images.class_names), int(labels.max()) + 1)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels as (N, C) 0/1: single-class labels (N,) are spread, multi-label ones pass."""
    return labels if labels.ndim == 2 else np.eye(classes, dtype=np.uint8)[labels]
