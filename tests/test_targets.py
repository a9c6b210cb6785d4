"""The targets of distillation against naive loops, and at their edges: dead dimensions, few images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from distilhash.config import DistillConfig
from distilhash.errors import DistilhashError
from distilhash.training import targets
from distilhash.training.targets import create_target

CONFIG = DistillConfig(loss="prototypes", prototypes=10, temperature=0.5, seed=4)


def features_of(count=120, dim=12, seed=0):
    """Rectified features about five centres, of very different scales."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, dim))
    features = centres[rng.integers(5, size=count)] + 0.4 * rng.normal(size=(count, dim))
    return (np.maximum(features, 0) * rng.uniform(0.01, 50, dim)).astype(np.float32)


def target_of(features, rows=None, **changes):
    return create_target(
        features, np.arange(len(features)) if rows is None else rows, dataclasses.replace(CONFIG, **changes)
    )


def test_unknown_losses_are_listed():
    with pytest.raises(
        DistilhashError, match=r"unknown distillation loss; got 'mse'; .*: prototypes, raw, standardised"
    ):
        target_of(features_of(), loss="mse")


def test_raw_is_the_features_and_their_mean_squared_error():
    features = features_of()
    target = target_of(features, loss="raw")
    assert target.dim == 12
    asked = torch.from_numpy(features[:7])
    assert torch.equal(target.of(asked), asked)
    outputs = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    naive = sum((outputs[n, d].item() - features[n, d]) ** 2 for n in range(7) for d in range(12)) / (7 * 12)
    assert target.loss(outputs, asked).item() == pytest.approx(naive, rel=1e-5)


def test_standardised_is_the_z_score_over_the_rows_alone():
    features = features_of()
    rows = np.array([3, 80, 5, 17, 60, 61, 62, 119])
    target = target_of(features, rows, loss="standardised")
    found = target.of(torch.from_numpy(features)).numpy()
    for d in range(12):
        values = [float(features[row, d]) for row in rows]
        mean = sum(values) / len(values)
        std = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        expected = (features[:, d] - mean) / (std if std > 0 else 1.0)
        np.testing.assert_allclose(found[:, d], expected, rtol=1e-4, atol=1e-4)


def test_statistics_do_not_depend_on_the_blocks_they_are_read_in():
    features = features_of(count=5000)
    rows = np.random.default_rng(1).permutation(5000)[:4500]
    mean_D, std_D = targets._statistics(features, rows)
    chosen = features[rows].astype(np.float64)
    np.testing.assert_allclose(mean_D.numpy(), chosen.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(std_D.numpy(), chosen.std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.7])
@pytest.mark.parametrize("loss", ["standardised", "prototypes"])
def test_a_dimension_that_never_moves_changes_nothing(loss, value):
    features = features_of()
    asked = torch.from_numpy(features)
    expected = target_of(features, loss=loss).of(asked)
    still = np.insert(features, [2, 5, 5], np.float32(value), axis=1)
    found = target_of(still, loss=loss).of(torch.from_numpy(still))
    if loss == "standardised":
        np.testing.assert_allclose(found[:, [2, 6, 7]], 0, atol=1e-6)
        found = found[:, [d for d in range(15) if d not in (2, 6, 7)]]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("dim", [12, 160], ids=["every component", "more dimensions than components"])
def test_prototypes_are_spherical_k_means_of_the_leading_components(dim):
    features = features_of(200, dim)
    rows = np.sort(np.random.default_rng(2).permutation(200)[:180])
    found = target_of(features, rows).of(torch.from_numpy(features)).numpy()

    fitted = features[rows].astype(np.float64)
    mean, std = fitted.mean(axis=0), fitted.std(axis=0)
    std[std == 0] = 1
    draw = np.random.default_rng((CONFIG.seed, 11))
    sample = np.sort(draw.permutation(rows))
    z = (features.astype(np.float64) - mean) / std
    _, _, axes = np.linalg.svd(z[sample], full_matrices=False)  # not centred anew: the rows are centred already
    points = z @ axes[: targets.COMPONENTS].T
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    centres = points[sample][np.sort(draw.permutation(len(sample))[: CONFIG.prototypes])]
    for _ in range(targets.ITERATIONS):
        members = [[] for _ in centres]
        for point in points[sample]:
            members[max(range(len(centres)), key=lambda t: centres[t] @ point)].append(point)
        centres = np.array(
            [sum(m) / np.linalg.norm(sum(m)) if m else old for m, old in zip(members, centres, strict=True)]
        )
    np.testing.assert_allclose(found, points @ centres.T / CONFIG.temperature, atol=2e-4)


def test_assignments_sum_to_one_and_their_loss_is_least_where_the_student_agrees():
    features = features_of()
    target = target_of(features)
    logits = target.of(torch.from_numpy(features[:9]))
    assert logits.abs().max() <= 1 / CONFIG.temperature + 1e-4  # cosines over the temperature
    p = np.exp(logits.double().numpy())
    p /= p.sum(axis=1, keepdims=True)
    outputs = torch.randn(9, target.dim, generator=torch.Generator().manual_seed(0))
    q = np.exp(outputs.double().numpy())
    q /= q.sum(axis=1, keepdims=True)
    naive = -sum(p[n, t] * np.log(q[n, t]) for n in range(9) for t in range(target.dim)) / 9
    assert target.loss(outputs, logits).item() == pytest.approx(naive, rel=1e-5)
    agreeing = logits.clone().requires_grad_()
    target.loss(agreeing, logits).backward()
    # The gradient of cross-entropy is (q - p) / N: zero at agreement only where both sum to one.
    assert agreeing.grad.abs().max() < 1e-7


@pytest.mark.parametrize(("count", "prototypes"), [(2, 2), (15, 2), (16, 2), (40, 5), (79, 9), (80, 10), (200, 10)])
def test_few_images_get_few_prototypes(count, prototypes):
    features = features_of(count)
    target = target_of(features)
    assert target.dim == prototypes
    assert torch.isfinite(target.of(torch.from_numpy(features))).all()


def test_images_that_are_all_alike_give_finite_targets():
    features = np.ones((30, 12), np.float32)
    for loss in targets.TARGETS:
        assert torch.isfinite(target_of(features, loss=loss).of(torch.from_numpy(features))).all()


def test_a_prototype_that_loses_every_image_stays_where_it_was():
    points = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), dim=1)
    start = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]), dim=1)
    centres = targets._spherical_k_means(points, start)
    assert torch.equal(centres[2], start[2])
    assert torch.allclose(centres[0], torch.nn.functional.normalize(points[0] + points[1], dim=0))


def test_prototypes_are_the_seeds():
    features, asked = features_of(), torch.from_numpy(features_of(20, seed=3))
    assert torch.equal(target_of(features).of(asked), target_of(features).of(asked))
    assert not torch.equal(target_of(features).of(asked), target_of(features, seed=5).of(asked))
