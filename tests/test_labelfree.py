"""Codes without labels, held to what defines them: principal axes, the Procrustes problem, another implementation."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from distilhash.errors import DistilhashError
from distilhash.itq import itq
from distilhash.training.unlabelled import PseudoLabelled, itq_hasher, pseudo_classes
from tiny import TinyStudent, tiny_images

BITS = 16


def features(count: int = 400, dim: int = 40, seed: int = 0) -> np.ndarray:
    """Never negative, correlated, of very unequal variances, as a network's are, and of the size of codes."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, dim)) * np.geomspace(3, 0.1, dim) @ rng.normal(size=(dim, dim))
    return 0.1 * np.maximum(mixed + 2, 0).astype(np.float32)


def outputs(found, features_ND):
    return features_ND.astype(np.float64) @ found.weight.T + found.bias


def test_every_turn_lowers_the_quantisation_error_and_the_rotation_stays_one():
    found = itq(features(), BITS)
    assert len(found.errors) == 51
    assert all(after <= before + 1e-9 for before, after in zip(found.errors, found.errors[1:], strict=False))
    assert found.errors[-1] < 0.9 * found.errors[0]
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(BITS), atol=1e-10)


def test_the_codes_are_those_of_the_plain_algorithm():
    """The rotation of each turn as a polar factor, found from eigenvalues, where the code takes singular values."""
    x = features()
    z_NK = outputs(itq(x, BITS, turns=0), x)
    for turns in range(1, 6):
        signs_NK = np.array([[1.0 if value > 0 else -1.0 for value in row] for row in z_NK])
        crossed_KK = z_NK.T @ signs_NK
        values_K, vectors_KK = np.linalg.eigh(crossed_KK.T @ crossed_KK)
        z_NK = z_NK @ crossed_KK @ (vectors_KK / np.sqrt(values_K)) @ vectors_KK.T
        assert np.array_equal(outputs(itq(x, BITS, turns=turns), x) > 0, z_NK > 0), turns


def test_the_map_keeps_the_largest_variance():
    x = features()
    found = itq(x, BITS)
    gram_KK = found.weight @ found.weight.T
    scale = gram_KK[0, 0]
    np.testing.assert_allclose(gram_KK, scale * np.eye(BITS), atol=1e-5 * scale)  # orthogonal rows of one length
    kept = np.trace(found.weight @ np.cov(x.T) @ found.weight.T) / scale
    assert kept == pytest.approx(np.linalg.eigvalsh(np.cov(x.T))[-BITS:].sum(), rel=1e-5)
    np.testing.assert_allclose(outputs(found, x).mean(axis=0), 0, atol=1e-9)


def test_bits_are_balanced_and_differ():
    codes_NK = np.where(outputs(itq(features(2000), BITS), features(2000)) > 0, 1, -1)
    assert np.abs(codes_NK.mean(axis=0)).max() < 0.25
    together_KK = np.abs(codes_NK.T @ codes_NK) / len(codes_NK) - np.eye(BITS)
    assert together_KK.max() < 0.6


def test_codes_keep_distances_as_well_as_those_of_faiss():
    x = features()
    theirs = faiss.ITQTransform(x.shape[1], BITS, True)
    theirs.train(x)
    pairs = np.triu_indices(len(x), 1)
    real_P = np.square(x[:, None] - x[None]).sum(axis=2)[pairs]

    def follows(outputs_NK) -> float:
        codes_NK = np.where(outputs_NK > 0, 1, -1)
        return float(np.corrcoef((codes_NK @ -codes_NK.T)[pairs], real_P)[0, 1])

    ours = follows(outputs(itq(x, BITS), x))
    assert ours > follows(theirs.apply(x)) - 0.01
    assert ours > follows(outputs(itq(x, BITS, turns=0), x)) + 0.02  # what the rotation is for


@pytest.mark.parametrize(("count", "dim"), [(5, 40), (300, 6), (1, 40), (2, 3)])
def test_fewer_components_than_bits_still_give_every_bit(count, dim):
    x = features(count, dim)
    found = itq(x, BITS)
    assert found.weight.shape == (BITS, dim)
    assert np.isfinite(found.weight).all() and np.isfinite(found.bias).all()
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(BITS), atol=1e-10)
    others = outputs(found, features(50, dim, seed=9)) > 0
    assert (others.any(axis=0) & ~others.all(axis=0)).sum() >= BITS // 2


def test_fitted_to_five_images_others_still_get_codes_of_their_own():
    x = features(334, 200)
    codes_NK = outputs(itq(x[:5], 64), x) > 0
    assert len(np.unique(codes_NK, axis=0)) == len(x)
    differing_NN = (codes_NK[:, None] != codes_NK[None]).sum(axis=2)[np.triu_indices(len(x), 1)]
    real_P = np.sqrt(np.square(x[:, None] - x[None]).sum(axis=2))[np.triu_indices(len(x), 1)]
    assert np.corrcoef(differing_NN, real_P)[0, 1] > 0.3


def test_what_is_no_matrix_of_numbers_is_refused():
    for wrong in (np.zeros(3), np.zeros((0, 3)), np.full((4, 3), np.nan)):
        with pytest.raises(DistilhashError, match="ITQ needs finite features"):
            itq(wrong, BITS)
    with pytest.raises(DistilhashError, match="positive whole number of bits; got 0"):
        itq(features(), 0)


def test_a_hasher_gives_the_outputs_of_its_map():
    """Behind a hasher's ReLU: what is negative in the features plays no part in the fit."""
    student = TinyStudent()
    x = features(300, student.feature_dim) - 0.2
    hasher = itq_hasher(student, x, BITS, seed=3)
    positive = np.maximum(x, 0)
    expected = outputs(itq(positive, BITS, seed=3), positive)
    with torch.inference_mode():
        found = hasher.head(torch.relu(torch.from_numpy(x)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert hasher.freeze_backbone and not hasher.training


def test_pseudo_classes_find_separable_groups():
    rng = np.random.default_rng(0)
    truth = np.arange(400) % 4
    x = np.maximum(rng.normal(size=(4, 30))[truth] * 3 + rng.normal(size=(400, 30)), 0).astype(np.float32)
    found = pseudo_classes(x, np.arange(400), clusters=16)
    pure = sum(np.bincount(truth[found == cluster]).max() for cluster in np.unique(found)) / len(truth)
    assert len(np.unique(found)) <= 16
    assert pure > 0.95  # chance: about a quarter
    assert np.array_equal(found, pseudo_classes(x, np.arange(400), clusters=16))


class Unlabelled:
    """A source that has no labels to give."""

    def __init__(self, source) -> None:
        self.source, self.names, self.fingerprint = source, source.names, "unlabelled"
        self.decodes, self.digests = source.decodes, source.digests

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self):
        raise AssertionError("a label was read")

    class_names = labels

    def read(self, indices):
        return self.source.read(indices)


def test_pseudo_labels_stand_beside_the_images_they_were_made_for():
    images = tiny_images(20)
    made = PseudoLabelled(Unlabelled(images), np.array([3, 5, 8]), np.array([2, 0, 1]))
    assert (made.labels[3], made.labels[5], made.labels[8], len(made)) == (2, 0, 1, 20)
    assert made.class_names == ["cluster 0", "cluster 1", "cluster 2"]
    assert np.array_equal(made.read([4]), images.read([4]))
