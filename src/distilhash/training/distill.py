"""Distillation without labels: the student matches the features of a teacher that nobody fine-tuned.

arXiv 2207.09070 (Context Unaware Knowledge Distillation for Image Retrieval), section 3.1. With ``loss="raw"``,
``optimizer="published"`` and ``mode="online"`` this is the published loop; the defaults take the teacher's features
from a cache instead of running it in every step, and reach more in fewer steps (see ``targets`` and ``optim``).

Left out on purpose: any term with labels, and query images (the caller passes the indices that may be seen).

Legend: N images of a batch, S pixels, V views, D the teacher's feature dimensions, T the target's dimensions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilhash.checkpoint import ORIGIN, save_model
from distilhash.config import DistillConfig, as_dict
from distilhash.data.order import Batches
from distilhash.data.prefetch import prefetch, readers
from distilhash.data.sources import ImageSource
from distilhash.data.transforms import Preprocess, augmented, make_views, read_for
from distilhash.device import arithmetic, current, sent, settled_precision
from distilhash.errors import DistilhashError, unknown_name
from distilhash.files import fingerprint_of_indices
from distilhash.models.backbone import Backbone
from distilhash.models.teacher import Teacher
from distilhash.progress import progress
from distilhash.training.optim import Optimizers
from distilhash.training.run import RunDirectory
from distilhash.training.targets import TARGETS, Target, create_target
from distilhash.training.teacher_features import compute_teacher_features, frozen, precision_of

NEIGHBOURS = 10  # agreement counts how many of the teacher's 10 nearest images are also the student's


def distill(
    images: ImageSource, indices: np.ndarray, teacher: Teacher, student: Backbone, config: DistillConfig,
    run: RunDirectory, *, features: str | Path | None = None, features_of: np.ndarray | None = None,
    rebuild_features: bool = False, queries: str | None = None,
) -> Backbone:  # fmt: skip
    """Train a student on unlabelled images.

    Args:
        images, indices: of which no label is read, and those that may be seen; some of them are the validation set.
        teacher, student: the one stays as it is; the other is trained in place.
        run: where the model is written. A run with a saved state is continued, and ends in the same weights.
        features: directory of the teacher's feature cache. None: inside the run.
        features_of: indices of the images in that cache, where those are more than ``indices``.
        rebuild_features: compute the cache anew.
        queries: fingerprint of the images that were left out, for the checkpoint's description.

    Returns:
        The student, in eval mode.

    Raises:
        DistilhashError: what ``check`` refuses, or a cache of another teacher.
    """
    check(config, images, indices)
    device, pixels = current(), Preprocess(student.input)
    train, validation = split_validation(indices, config.validation_size, config.seed)
    cached = indices if features_of is None else features_of
    features = features or run.path / "teacher_features"
    cache_VND = compute_teacher_features(
        images, cached, teacher, features, crop_mode=student.input, views=config.cached_views, seed=config.seed,
        precision=config.precision, rebuild=rebuild_features,
    )  # fmt: skip
    order = np.argsort(cached)

    def rows_of(chosen: np.ndarray) -> np.ndarray:
        rows: np.ndarray = order[np.searchsorted(cached, chosen, sorter=order)]
        return rows

    if not np.ptp(cache_VND[0, rows_of(validation)], axis=0).any():
        fix = "give images that differ, or another teacher"
        raise DistilhashError("the teacher sees no difference between the images", f"{len(validation)} of them", fix)
    target = create_target(cache_VND[0], rows_of(train), config, device)
    projection_head = _projection_head(student, target, config.seed).to(device)
    student.to(device).to(memory_format=torch.channels_last).train()
    shape_N3SS = (config.batch_size, 3, student.input.size, student.input.size)
    precision = settled_precision(config.precision, run.path / "precision.json", student, shape_N3SS)
    batches = Batches(count=len(train), batch_size=config.batch_size, seed=config.seed)
    modules = {"student": student, "projection_head": projection_head}
    optimizers = Optimizers(modules, config, config.epochs * batches.steps, "distil", precision, torch.optim.Adam)
    step = run.restore(optimizers)

    def agreement() -> dict[str, float]:
        blocks = np.split(validation, range(100, len(validation), 100))
        student.eval()
        with torch.inference_mode():
            features_ND = torch.cat([student(sent(pixels.tensor(pixels.read(images, b)), device)) for b in blocks])
            teacher_ND = sent(torch.from_numpy(cache_VND[0, rows_of(validation)]), device)
            found = _agreement(features_ND, projection_head(features_ND), teacher_ND, target.of(teacher_ND))
        student.train()
        return found

    if step == 0:
        run.record(0, epoch=0, **agreement())
    seen = teacher.input.with_crop_of(student.input)
    online = frozen(teacher, seen, precision_of(features)) if config.mode == "online" else None
    pipelines = [pixels] if online is None else [pixels, Preprocess(seen)]

    def load(step: int) -> list[Tensor]:
        """The student's pixels (N, 3, S, S), and of the same views the teacher's features (N, D), or its pixels."""
        epoch, batch = divmod(step, batches.steps)
        chosen = train[batches.positions(epoch, batch)]
        view = epoch % config.views if online is None else epoch
        plain = online is None and view == 0
        cropped = read_for(pipelines, images, chosen, None if plain else make_views(chosen, view, config.seed))
        if config.augment:
            cropped[0] = augmented(cropped[0], chosen, epoch, config.seed)
        tensors = [pipeline.tensor(crops) for pipeline, crops in zip(pipelines, cropped, strict=True)]
        if online is None:
            tensors.append(torch.from_numpy(cache_VND[view, rows_of(chosen)]))
        return [sent(tensor, device) for tensor in tensors]

    with progress("distil", optimizers.steps * config.batch_size, done=step * config.batch_size) as shown:
        for pixels_N3SS, of_teacher in prefetch(
            load, range(step, optimizers.steps), **readers(shared=device.type != "cpu")
        ):
            features_ND = of_teacher if online is None else online(of_teacher)
            with arithmetic(precision):
                outputs_NT = projection_head(student(pixels_N3SS))
            loss = target.loss(outputs_NT.float(), target.of(features_ND))
            shown.add(config.batch_size, loss=optimizers.step(loss, step))
            step += 1
            if step % batches.steps == 0:
                optimizers.check(step)
                run.record_epoch(optimizers, step, step // batches.steps, agreement())
            run.save_if_due(optimizers, step, config.checkpoint_seconds)

    description = {
        "kind": "student", "architecture": student.architecture, "teacher": teacher.name,
        "teacher_fingerprint": teacher.fingerprint, "images": images.fingerprint, "unlabelled_images": len(indices),
        "indices": fingerprint_of_indices(indices), "queries": queries, "precision": precision, "device": str(device),
        "settings": as_dict(config),
    }  # fmt: skip
    student.seen = images.digests[indices]
    student.origin = {key: description[key] for key in ORIGIN}
    save_model(run.path / "model", student, description)
    run.drop_state()
    student.pretrained = True  # hashing takes smaller steps from here on
    return student.eval()


def check(config: DistillConfig, images: ImageSource, indices: np.ndarray) -> None:
    """Refuse what cannot be run on these unlabelled images, before anything is computed or written."""
    if config.loss not in TARGETS:
        raise unknown_name("distillation loss", config.loss, TARGETS)
    current()
    count = len(indices)
    validation = min(config.validation_size, count // 5)
    got = f"{count}, of which {validation} are the validation set"
    if validation <= NEIGHBOURS:
        fix = f"the validation set needs {NEIGHBOURS + 1}: give at least {5 * (NEIGHBOURS + 1)} images"
        raise DistilhashError("too few images to distil on", got, fix)
    if count - validation < config.batch_size:
        fix = "give more images or a smaller --batch-size"
        raise DistilhashError("too few images to distil on", f"{got}, with batches of {config.batch_size}", fix)
    if len(np.unique(images.digests[indices], axis=0)) < 2:
        got = f"{count:,} copies of it"
        raise DistilhashError("nothing can be learnt of one image", got, "give images that differ")


def split_validation(indices: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split unlabelled indices into those trained on and a validation set of ``count``, a fifth at most."""
    order = np.random.default_rng((seed, 7)).permutation(len(indices))
    count = min(count, len(indices) // 5)
    return indices[np.sort(order[count:])], indices[np.sort(order[:count])]


def _projection_head(student: Backbone, target: Target, seed: int) -> nn.Module:
    """From the student's features to the target's dimensions; thrown away after distillation."""
    if student.feature_dim == target.dim:  # as in the paper
        return nn.Identity()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return nn.Linear(student.feature_dim, target.dim)


def _agreement(features_ND: Tensor, outputs_NT: Tensor, teacher_ND: Tensor, target_NT: Tensor) -> dict[str, float]:
    """Mean cosine of outputs with targets, and the share of the teacher's nearest neighbours that the student has."""
    # Centred: features and logits have a common part that would make any two images look alike.
    cosine = F.cosine_similarity(outputs_NT - outputs_NT.mean(dim=0), target_NT - target_NT.mean(dim=0), dim=1)
    near = [nearest(x_ND) for x_ND in (features_ND, teacher_ND)]
    shared = (near[0][:, :, None] == near[1][:, None, :]).any(dim=2).float().mean()
    return {"cosine": cosine.mean().item(), "overlap_at_10": shared.item()}


def nearest(features_ND: Tensor) -> Tensor:
    """The rows (N, NEIGHBOURS) that are most like each row by cosine, after centring, without itself."""
    unit_ND = F.normalize(features_ND - features_ND.mean(dim=0), dim=1)
    similarity_NN = unit_ND @ unit_ND.T
    similarity_NN.fill_diagonal_(-2)  # an image is not its own neighbour
    return similarity_NN.topk(NEIGHBOURS, dim=1).indices
