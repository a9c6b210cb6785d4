"""Distillation without labels: the student matches the features of a teacher that nobody fine-tuned.

arXiv 2207.09070 (Context Unaware Knowledge Distillation for Image Retrieval), section 3.1. With ``loss="raw"``,
``optimizer="published"`` and ``mode="online"`` this is the published loop; the defaults take the teacher's features
from a cache instead of running it in every step, and ask for less and get more (see ``targets`` and ``muon``).

Left out on purpose: any term with labels, and query images (the caller passes the indices that may be seen).

Legend: N images of a batch, D the teacher's feature dimensions, T the target's dimensions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilhash.checkpoint import save_model
from distilhash.config import DistillConfig, as_dict
from distilhash.data.order import Batches
from distilhash.data.prefetch import prefetch, readers
from distilhash.data.sources import ImageSource
from distilhash.data.transforms import Preprocess, make_views
from distilhash.device import PRECISIONS, arithmetic, current, on, sent, settled_precision
from distilhash.errors import DistilhashError, unknown_name
from distilhash.files import fingerprint_of_indices
from distilhash.models.student import Student
from distilhash.models.teacher import Teacher
from distilhash.training.optim import OPTIMIZERS, Optimizers
from distilhash.training.progress import Progress
from distilhash.training.run import RunDirectory
from distilhash.training.targets import TARGETS, create_target
from distilhash.training.teacher_features import compute_teacher_features

MODES = ("cached", "online")
NEIGHBOURS = 10  # agreement counts how many of the teacher's 10 nearest images are also the student's


def distill(
    images: ImageSource,
    indices: np.ndarray,
    teacher: Teacher,
    student: Student,
    config: DistillConfig,
    run: RunDirectory,
    *,
    features: Path | None = None,
    features_of: np.ndarray | None = None,
    rebuild_features: bool = False,
    queries: str | None = None,
) -> Student:
    """Train ``student`` on the unlabelled ``images[indices]`` and return it; write the run directory.

    ``features`` is the directory of the teacher's feature cache (default: inside the run), and ``features_of`` the
    images that it holds, where those are more than ``indices``: of others no row is read. ``student`` must be freshly
    made from ``config.seed``. ``queries`` is the fingerprint of the images that were left out, for the checkpoint's
    description. A run directory with a saved state is continued and ends in the same weights. Errors: DistilhashError for
    unknown names, too few images, or a cache of another teacher.
    """
    check(config, len(indices))
    where = current()
    fit, held = hold_out(indices, config.validation_size, config.seed)
    cached = config.mode == "cached"
    held_in_cache = indices if features_of is None else features_of
    cache_VND = compute_teacher_features(
        images, held_in_cache, teacher, features or run.path / "teacher_features", crop_mode=student.input,
        views=config.cached_views, seed=config.seed, precision=config.precision, rebuild=rebuild_features,
        say=run.say,
    )  # fmt: skip
    rows_of = _Rows(held_in_cache)
    target = create_target(cache_VND[0], rows_of(fit), config, where)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        # Thrown away after distillation; equal sizes need none (paper).
        same = student.feature_dim == target.dim
        bridge: nn.Module = nn.Identity() if same else nn.Linear(student.feature_dim, target.dim)
    bridge.to(where)
    student.to(where).to(memory_format=torch.channels_last)
    batches = Batches(count=len(fit), batch_size=config.batch_size, seed=config.seed)
    steps = config.epochs * batches.steps
    optimizers = Optimizers(
        {"student": student, "bridge": bridge}, config.optimizer, steps, published=torch.optim.Adam,
        rate=config.learning_rate, muon_lr=config.muon_lr, weight_decay=config.weight_decay,
    )  # fmt: skip
    progress = Progress(run, "distil", config.epochs, batches.steps, config.batch_size)
    step = progress.restore(optimizers)
    student_pixels = Preprocess(student.input)
    teacher_pixels = Preprocess(teacher.input.with_crop_of(student.input))
    online = teacher if cached else on(teacher, where)

    def load(number: int) -> tuple[Tensor, Tensor]:
        """For one step: the student's pixels, and the target of the very same views."""
        epoch, batch = divmod(number, batches.steps)
        chosen = fit[batches.positions(epoch, batch)]
        view = epoch % config.views
        views = make_views(chosen, view, config.seed) if view else None
        if cached:
            pixels_N3SS = student_pixels.tensor(student_pixels.read(images, chosen, views))
            features_ND = torch.from_numpy(cache_VND[view, rows_of(chosen)])
            return sent(pixels_N3SS, where), target.of(sent(features_ND, where))
        pixels = images.read(chosen)
        with torch.no_grad():  # autograd would refuse a target that inference mode made
            features_ND = online(sent(teacher_pixels(pixels, views), where))
        return sent(student_pixels(pixels, views), where), target.of(features_ND)

    def agreement() -> dict[str, float]:
        """How near the student is to the teacher on the validation images."""
        held_ND = sent(torch.from_numpy(cache_VND[0, rows_of(held)]), where)
        features = _encode(student, images, held, student_pixels, where)
        with torch.inference_mode():
            return _agreement(features, bridge(features), held_ND, target.of(held_ND))

    if step == 0:
        run.record(0, epoch=0, **agreement())
    student.train()
    side = student.input.size
    precision = settled_precision(
        config.precision, run.path / "precision.json", student, (config.batch_size, 3, side, side)
    )
    for pixels_N3SS, target_NT in prefetch(load, range(step, steps), **readers(shared=where.type != "cpu")):
        with arithmetic(precision):
            outputs_NT = bridge(student(pixels_N3SS))
        loss = target.loss(outputs_NT.float(), target_NT)
        optimizers.step(loss, step)
        step += 1
        if progress.step(step, loss.item()):
            progress.epoch(step, agreement())
            student.train()
        progress.save_if_due(optimizers, step, config.checkpoint_seconds)

    description = {
        "kind": "student", "architecture": student.architecture, "teacher": teacher.name,
        "teacher_fingerprint": teacher.fingerprint, "images": images.fingerprint, "unlabelled_images": len(indices),
        "indices": fingerprint_of_indices(indices), "queries": queries, "precision": precision, "device": where.type,
        "settings": as_dict(config),
    }  # fmt: skip
    save_model(run.path / "model", student, description)
    run.drop_state()
    return student.eval()


def check(config: DistillConfig, count: int) -> None:
    """Refuse what cannot be run on ``count`` images, before anything is computed or written. Errors: DistilhashError."""
    for kind, name, known in (
        ("distillation mode", config.mode, MODES),
        ("distillation loss", config.loss, TARGETS),
        ("optimizer", config.optimizer, OPTIMIZERS),
        ("precision", config.precision, PRECISIONS),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)
    current()  # a device that is not there is found now, not when a directory has been deleted for this run
    held = min(config.validation_size, count // 5)
    if count - held < config.batch_size or held <= NEIGHBOURS:
        raise DistilhashError(
            "too few images to distil on",
            f"{count}, of which {held} are held out, with batches of {config.batch_size}",
            f"give more (at least {5 * (NEIGHBOURS + 1)}) or a smaller --batch-size",
        )


def hold_out(indices: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split unlabelled indices into those trained on and ``count`` (at most a fifth) held out, by the seed."""
    order = np.random.default_rng((seed, 7)).permutation(len(indices))
    count = min(count, len(indices) // 5)
    return indices[np.sort(order[count:])], indices[np.sort(order[:count])]


class _Rows:
    """From image indices to their rows in the cache."""

    def __init__(self, indices: np.ndarray) -> None:
        self._order = np.argsort(indices)
        self._sorted = indices[self._order]

    def __call__(self, chosen: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self._order[np.searchsorted(self._sorted, chosen)]
        return rows


def _encode(
    student: Student, images: ImageSource, indices: np.ndarray, pixels: Preprocess, where: torch.device
) -> Tensor:
    student.eval()
    blocks = [indices[start : start + 100] for start in range(0, len(indices), 100)]
    with torch.inference_mode():
        return torch.cat([student(sent(pixels.tensor(pixels.read(images, block)), where)) for block in blocks])


def _agreement(features_ND: Tensor, outputs_NT: Tensor, teacher_ND: Tensor, target_NT: Tensor) -> dict[str, float]:
    """Mean cosine of outputs with targets, and the share of the teacher's nearest neighbours that the student has."""
    # Centred: features and logits have a common part that would make any two images look alike.
    cosine = F.cosine_similarity(outputs_NT - outputs_NT.mean(dim=0), target_NT - target_NT.mean(dim=0), dim=1)
    near = [_nearest(x_ND) for x_ND in (features_ND, teacher_ND)]
    shared = (near[0][:, :, None] == near[1][:, None, :]).any(dim=2).float().mean()
    return {"cosine": cosine.mean().item(), "overlap_at_10": shared.item()}


def _nearest(features_ND: Tensor) -> Tensor:
    unit_ND = F.normalize(features_ND - features_ND.mean(dim=0), dim=1)
    similarity_NN = unit_ND @ unit_ND.T
    similarity_NN.fill_diagonal_(-2)  # an image is not its own neighbour
    return similarity_NN.topk(NEIGHBOURS, dim=1).indices
